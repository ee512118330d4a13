"""The soak: a real server under mixed load and faults, for minutes in the test suite and for an hour in `make soak`."""
