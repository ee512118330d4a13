"""Everything that makes a checkpoint: tasks with traces, conversation, tokenizer, batches and the training stages."""
