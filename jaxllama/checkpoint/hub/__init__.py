"""Checkpoints by their names on the Hugging Face Hub: from its cache, or fetched into it."""

from jaxllama.checkpoint.hub.locate import locate

__all__ = ["locate"]
