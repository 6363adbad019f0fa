"""What every format is read into: a lazy view of a checkpoint under canonical names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllama.checkpoint.names import HEAD
from jaxllama.config import LlamaConfig
from jaxllama.errors import CheckpointError

if TYPE_CHECKING:
    from jaxllama.tokenizer import Tokenizer

# A slice for each axis of a tensor, with both ends.
Index = tuple[slice, ...]


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor, known without reading it.

    Attributes:
        shape: in canonical layout.
        dtype: of what `Checkpoint.read` returns.
        file: where it is stored; None for a checkpoint in memory.
        encoding: how it is stored, where that differs from `dtype` (a GGUF quantisation).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path | None
    encoding: str = ""

    @property
    def nbytes(self) -> int:
        """Size in bytes once read."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint of any format; nothing but metadata is in memory until `read`.

    Attributes:
        path: file or directory; None for one made in memory.
        format: `hf`, `meta`, `orbax`, `gguf` or `memory`.
        config: its numbers.
        hf_config: the same as a Hugging Face config.json holds them.
        tensors: canonical name to what is stored; a tied model's head is not among them.
        stored_head: a head stored though tied, which `validate` compares with the embedding.
        reader: reads one tensor in canonical layout.
        part_reader: reads a part of one, and no more of the file; None where the format has no way.
        config_source: where the configuration came from, for messages.
        notes: oddities that do not stop it from being loaded.
        problems: what does stop it, beyond what `validate` finds.
        companions: files to carry along: tokenizer, chat template, generation settings.
        tokenizer_loader: reads the tokenizer, where it is not among the companions.
        head_digests: computes digests of what each file of weights says besides them, by file,
            where tokenizer or configuration are there (GGUF).
        title: what to call one made in memory.
    """

    path: Path | None
    format: str
    config: LlamaConfig
    hf_config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    reader: Callable[[str], np.ndarray]
    config_source: str
    part_reader: Callable[[str, Index], np.ndarray] | None = None
    stored_head: TensorInfo | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    companions: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    tokenizer_loader: Callable[[], Tokenizer] | None = None
    head_digests: Callable[[], Mapping[str, str]] = dict
    title: str = "memory checkpoint"

    @property
    def label(self) -> str:
        """Name it in a message."""
        return str(self.path) if self.path else self.title

    @property
    def nbytes(self) -> int:
        """Size of all its tensors in bytes, once read."""
        return sum(info.nbytes for info in self.tensors.values())

    def noted(self, *notes: str) -> Checkpoint:
        """Return the same with notes before its own."""
        return replace(self, notes=(*notes, *self.notes)) if notes else self

    def read(self, name: str) -> np.ndarray:
        """Read one tensor.

        Args:
            name: canonical name.

        Returns:
            The tensor in canonical layout and stored dtype (bfloat16 of `ml_dtypes`).

        Raises:
            CheckpointError: there is none of this name, or it cannot be read.
        """
        if name not in self.tensors and (name != HEAD or self.stored_head is None):
            raise CheckpointError(f"{self.label}: no tensor {name!r}")
        return self.reader(name)

    def read_part(self, name: str, index: Index) -> np.ndarray:
        """Read a part of one tensor, and no more of the file where the format allows that.

        Args:
            name: canonical name.
            index: a slice for each axis, with both ends.

        Raises:
            CheckpointError: as for `read`.
        """
        if self.part_reader is None or name not in self.tensors:
            return self.read(name)[index]
        return self.part_reader(name, index)

    def tokenizer(self) -> Tokenizer:
        """Read the tokenizer that came with the checkpoint.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        if self.tokenizer_loader is None:
            raise CheckpointError(f"{self.label}: has no tokenizer; give token ids instead")
        return self.tokenizer_loader()
