"""Tests of the engine process, and what they share with the scheduler that fails on purpose."""

FATAL_PRIORITY = 666
"""Of a request that breaks the shared engine (failing_scheduler)."""
SCHEDULE_PRIORITY = 667
"""Of a request that cannot be scheduled."""
POISON, LATE_POISON = 1.2345, 1.3456
"""Temperatures at which a draw fails: every one, or from the sixth on."""
