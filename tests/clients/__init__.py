"""Client libraries that people use, each against the real server."""
