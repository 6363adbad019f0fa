"""Training: `jaxllama train CONFIG.toml`, and the same from Python; docs/train.md.

What is imported from here needs the extra `train` (optax, grain), but for the
configuration.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxllama.train.config import LoraSettings, TrainConfig, read_config
    from jaxllama.train.run import Progressed, Trained, TrainingRun, train

_HOME = {
    "LoraSettings": "config",
    "Progressed": "run",
    "TrainConfig": "config",
    "Trained": "run",
    "TrainingRun": "run",
    "read_config": "config",
    "train": "run",
}

__all__ = [
    "LoraSettings",
    "Progressed",
    "TrainConfig",
    "Trained",
    "TrainingRun",
    "read_config",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxllama.train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxllama.train.{_HOME[name]}"), name)
