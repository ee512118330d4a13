FATAL_PRIORITY = 666
"""Of a request that breaks the shared engine (failing_scheduler)."""
