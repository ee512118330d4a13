"""Tests of the front end: HTTP, modes, budgets, streams, the command line."""
