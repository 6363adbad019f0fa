"""Causes in embedding, MLP, residual stream and products; one file each."""
