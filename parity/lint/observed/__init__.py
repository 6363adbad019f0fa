"""Masks as running models really hand them to their attention."""
