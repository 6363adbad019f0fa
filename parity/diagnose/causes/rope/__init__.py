"""Causes in rotary positions; one file each."""
