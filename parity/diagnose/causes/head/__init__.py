"""Causes in the logits; one file each."""
