"""A checkpoint as parity reads it; `open_source` makes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxllama.config import LlamaConfig
from jaxllama.errors import CheckpointError
from parity.sources.config import SourceConfig
from parity.sources.names import expected_shapes


@dataclass(frozen=True)
class SourceTensor:
    """A tensor that a checkpoint has to hold, of a shape in canonical layout."""

    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint; its weights are read when asked for, each anew.

    Attributes:
        path: file or directory.
        format: `hf`, `meta`, `orbax` or `gguf`.
        stated: its numbers, with their places.
        hf_config: the same for transformers.
        reader: reads one tensor by canonical name, in canonical layout.
        place: file and stored name of one, for messages.
    """

    path: Path
    format: str
    stated: SourceConfig
    hf_config: Mapping[str, Any]
    reader: Callable[[str], np.ndarray]
    place: Callable[[str], str]

    @cached_property
    def config(self) -> LlamaConfig:
        """Its numbers as models take them."""
        return self.stated.to_llama()

    @cached_property
    def tensors(self) -> Mapping[str, SourceTensor]:
        """What it has to hold, by canonical name, in data-flow order."""
        return {name: SourceTensor(s) for name, s in expected_shapes(self.stated).items()}

    def read(self, name: str) -> np.ndarray:
        """Return one tensor in its stored dtype, or float32 where it is quantised.

        Raises:
            CheckpointError: it is not there, cannot be read, or is of another shape.
        """
        try:
            values = self.reader(name)
        except Exception as error:  # each library raises its own kinds
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise CheckpointError(
                f"{self.place(name)}: cannot be read for the reference: {reason}"
            ) from error
        expected = self.tensors[name].shape
        if values.shape != expected:
            raise CheckpointError(
                f"{self.place(name)}: shape {values.shape} as the reference takes it, expected "
                f"{expected} of its configuration"
            )
        return values
