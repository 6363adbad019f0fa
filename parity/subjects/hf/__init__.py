"""transformers' Llama."""
