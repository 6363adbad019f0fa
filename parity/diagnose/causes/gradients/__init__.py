"""Causes in the backward pass and the loss; one file each."""
