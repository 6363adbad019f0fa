"""A checkpoint's tensors into the arrays of a model, on one device or on many."""

from jaxllama.checkpoint.load.model import load_model, load_part

__all__ = ["load_model", "load_part"]
