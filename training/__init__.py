"""Tokenizer, data and training stages of the embedded checkpoint; knows nothing of serving."""
