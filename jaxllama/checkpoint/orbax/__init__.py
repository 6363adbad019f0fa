"""Orbax directories."""
