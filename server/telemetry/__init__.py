"""What those who run a server see of its requests: ids, one log line for each, traces, and vLLM's metrics."""
