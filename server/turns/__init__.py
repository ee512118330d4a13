"""Runs jobs: the engine's tokens of each turn become pieces of a response."""
