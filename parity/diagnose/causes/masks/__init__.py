"""Causes in which keys a query sees; one file each."""
