"""Tests of the engine process, and what they share with the scheduler that fails on purpose."""

FATAL_PRIORITY = 666
"""Of a request that breaks the shared engine (failing_scheduler)."""
