"""Twogear on Ray Serve: a `twogear serve` of its own in each replica, and a router that knows prompts in front of them.

Runs in an environment with `ray[serve]` and without the server's own (requirements/ray.txt): of this repository only
modules are imported that need nothing beside Python.
"""
