"""All that reaches inside vLLM's running engine: its scheduler, page manager, CPU worker, model runner and sampler."""
