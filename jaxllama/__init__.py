"""Llama 3 in Flax NNX, with numerics that come from the checkpoint and nothing else.

The names below are the public interface; each is imported from its module when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxllama.cache import KVCache
    from jaxllama.checkpoint import Checkpoint, load_model, open_checkpoint
    from jaxllama.checkpoint.convert import convert
    from jaxllama.checkpoint.lora import save_lora
    from jaxllama.checkpoint.verify import verify
    from jaxllama.config import LlamaConfig, RopeScaling
    from jaxllama.errors import CheckpointError, ConfigError, InputError, JaxLlamaError
    from jaxllama.generate import Generation
    from jaxllama.loss import next_token_loss
    from jaxllama.model import Llama
    from jaxllama.presets import PRESETS, preset
    from jaxllama.sampling import Sampling
    from jaxllama.taps import Taps
    from jaxllama.text import TextGeneration, generate_text
    from jaxllama.tokenizer import Tokenizer

_HOME = {
    "Checkpoint": "checkpoint",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "Generation": "generate",
    "InputError": "errors",
    "JaxLlamaError": "errors",
    "KVCache": "cache",
    "Llama": "model",
    "LlamaConfig": "config",
    "PRESETS": "presets",
    "RopeScaling": "config",
    "Sampling": "sampling",
    "Taps": "taps",
    "TextGeneration": "text",
    "Tokenizer": "tokenizer",
    "convert": "checkpoint.convert",
    "generate_text": "text",
    "load_model": "checkpoint",
    "next_token_loss": "loss",
    "open_checkpoint": "checkpoint",
    "preset": "presets",
    "save_lora": "checkpoint.lora",
    "verify": "checkpoint.verify",
}

__all__ = [
    "PRESETS",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "Generation",
    "InputError",
    "JaxLlamaError",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "RopeScaling",
    "Sampling",
    "Taps",
    "TextGeneration",
    "Tokenizer",
    "convert",
    "generate_text",
    "load_model",
    "next_token_loss",
    "open_checkpoint",
    "preset",
    "save_lora",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxllama' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxllama.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
