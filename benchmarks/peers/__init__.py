"""The servers that users would pick instead, as the benchmarks fetch, build and start them."""
