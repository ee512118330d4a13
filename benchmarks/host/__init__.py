"""What a step costs the host, without a GPU: the real engine around a model that answers at once."""
