"""Tests of the evaluations and benchmarks."""
