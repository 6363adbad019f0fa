"""Causes in the KV cache; one file each."""
