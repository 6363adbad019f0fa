"""Causes in weights as they were read; one file each."""
