"""Causes in scores, softmax and heads; one file each."""
