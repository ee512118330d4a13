"""Evaluation and load benchmarks of a running server, through its HTTP interface alone."""
