"""The configuration of a subject's checkpoint, in whatever form people hold it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxllama import files
from jaxllama.checkpoint import open_checkpoint
from jaxllama.checkpoint.hf.read import CONFIG
from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError


class HasDict(Protocol):
    """A configuration of transformers."""

    def to_dict(self) -> dict[str, Any]: ...


ConfigLike = LlamaConfig | Mapping[str, Any] | HasDict | str | os.PathLike[str]


def as_config(given: ConfigLike) -> LlamaConfig:
    """Return a configuration as `LlamaConfig`.

    Args:
        given: one already; the dict of a Hugging Face config.json; a configuration of
            transformers; or the path of a checkpoint of any format, or of its config.json.

    Raises:
        InputError: none of these.
        CheckpointError, ConfigError: a path or dict that cannot be read as one.
    """
    if isinstance(given, LlamaConfig):
        return given
    if isinstance(given, Mapping):
        return LlamaConfig.from_hf(given, source="config=")
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        if path.name == CONFIG:
            return LlamaConfig.from_hf(files.read_json(path), source=str(path))
        return open_checkpoint(given).config
    if callable(getattr(given, "to_dict", None)):
        return LlamaConfig.from_hf(given.to_dict(), source=f"config= ({type(given).__name__})")
    raise InputError(
        f"config= {type(given).__name__}: expected a LlamaConfig, the dict of a config.json, the"
        " path of a checkpoint, or a configuration of transformers"
    )
