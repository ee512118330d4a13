"""The test suite; not installed."""
