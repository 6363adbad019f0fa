"""Meta's own reference model."""
