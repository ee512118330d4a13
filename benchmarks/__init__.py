"""Speed: load and peer benchmarks of a running server, and what its parts cost."""
