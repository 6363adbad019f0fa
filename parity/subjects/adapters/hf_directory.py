"""A checkpoint as the directory that most libraries load: Hugging Face's, on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxllama.checkpoint import Checkpoint, convert


@contextmanager
def hf_directory(checkpoint: Checkpoint) -> Iterator[Path]:
    """Write a checkpoint, whatever its format, with the configuration that it has now.

    It is gone afterwards: what is read from it lazily has to be read before.

    Args:
        checkpoint: whose tensors keep their dtypes.
    """
    with tempfile.TemporaryDirectory(prefix="parity-peer-") as scratch:
        target = Path(scratch) / "checkpoint"
        convert(checkpoint, target, to="hf")
        yield target
