"""What a sampler computes on the CPU: the draw, the penalties, the log-probabilities; knows nothing of vLLM."""
