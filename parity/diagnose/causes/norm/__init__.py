"""Causes in RMSNorm; one file each."""
