"""Checkpoints of every Llama format: read lazily under one set of names, converted, compared."""

from __future__ import annotations

from jaxllama.checkpoint.base import Checkpoint, TensorInfo
from jaxllama.checkpoint.checks import validate
from jaxllama.checkpoint.convert import FORMATS, Conversion, convert
from jaxllama.checkpoint.from_model import from_model
from jaxllama.checkpoint.load import load_model
from jaxllama.checkpoint.manifest import check_manifest
from jaxllama.checkpoint.open import SAMPLES, open_checkpoint
from jaxllama.checkpoint.orbax.hosts import save_from_hosts
from jaxllama.checkpoint.samples import fetch_smollm2, in_memory, tiny
from jaxllama.checkpoint.verify import Verification, verify

__all__ = [
    "FORMATS",
    "SAMPLES",
    "Checkpoint",
    "Conversion",
    "TensorInfo",
    "Verification",
    "check_manifest",
    "convert",
    "fetch_smollm2",
    "from_model",
    "in_memory",
    "load_model",
    "open_checkpoint",
    "save_from_hosts",
    "tiny",
    "validate",
    "verify",
]
