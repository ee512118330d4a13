"""The servers that users would use instead: how the benchmarks fetch, build and start them."""
