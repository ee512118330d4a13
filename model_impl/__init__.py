"""What runs inside vLLM's processes: the architecture as a plugin; knows nothing of HTTP or modes."""
