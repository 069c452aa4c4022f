"""Foreign models behind plain tensors: the one place that knows diffusers and its relatives."""
