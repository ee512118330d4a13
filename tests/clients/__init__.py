"""Clients that users have, each against the real server."""
