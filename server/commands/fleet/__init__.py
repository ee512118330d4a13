"""Fleets of engines: their simulation, and how many a workload needs."""
