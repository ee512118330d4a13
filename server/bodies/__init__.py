"""The bodies of requests: which fields there are, their types and ranges, and errors that name them."""
