"""Everything that makes a checkpoint: tokenizer, batches and the training stages."""
