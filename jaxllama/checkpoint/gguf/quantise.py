"""Quantised tensors out, by the `gguf` package, whose bits are those of ggml's own quantisers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Encoding

from jaxllama.checkpoint.base import TensorInfo
from jaxllama.checkpoint.checks import all_finite
from jaxllama.checkpoint.dtypes import cast
from jaxllama.checkpoint.layout import byte_size
from jaxllama.checkpoint.names import EMBEDDING, HEAD
from jaxllama.errors import CheckpointError, InputError

ENCODINGS = {"q8_0": Encoding.Q8_0, "q4_0": Encoding.Q4_0}
_BLOCK_BYTES = 1 << 24


def choose_quantisation(
    asked: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Quantisation, list[str]]:
    """Return how each tensor that can be is quantised, and notes on what is otherwise.

    Norms are left as they are: llama.cpp computes with them in float32. The head, or the embedding
    that stands for it, is Q8_0 in a Q4_0 model; llama.cpp takes Q6_K there, which the `gguf`
    package reads and does not write.

    Args:
        asked: `q8_0` or `q4_0`.
        shapes: of all tensors, by canonical name.

    Raises:
        InputError: it is no encoding that is written.
    """
    encoding = ENCODINGS.get(asked.lower())
    if encoding is None:
        raise InputError(f"quantize {asked!r}: expected one of {', '.join(ENCODINGS)}")
    block = gguf.GGML_QUANT_SIZES[encoding][0]
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    uneven = [name for name in matrices if shapes[name][1] % block]
    chosen = {name: encoding for name in matrices if name not in uneven}
    notes = [_kept(uneven, shapes, block)] if uneven else []
    head = HEAD if HEAD in shapes else EMBEDDING
    if encoding is Encoding.Q4_0 and head in chosen:
        chosen[head] = Encoding.Q8_0
        notes.append(f"{head} is Q8_0: llama.cpp, too, keeps more of the head than of the rest")
    return Quantisation(chosen), notes


def _kept(uneven: list[str], shapes: Mapping[str, tuple[int, ...]], block: int) -> str:
    return (
        f"{len(uneven)} tensors keep their dtype, since {block} does not divide their rows: "
        f"{uneven[0]} has rows of {shapes[uneven[0]][1]}"
    )


def quantise(values: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Return a matrix's rows as bytes: [rows, bytes of a row]."""
    rows, length = values.shape
    block, block_bytes = gguf.GGML_QUANT_SIZES[encoding]
    result = np.empty((rows, length // block * block_bytes), np.uint8)
    for part in _row_blocks(values):
        # A block whose values are too small for its scale's float16 divides by zero in there.
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            result[part] = gguf.quantize(values[part].astype(np.float32), encoding)
    return result


@dataclass(frozen=True)
class Quantisation:
    """Which tensors of a model are quantised, and how.

    Attributes:
        encodings: by canonical name.
    """

    encodings: Mapping[str, Encoding]

    def __call__(self, name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return what a tensor is once it is written and read again.

        Raises:
            CheckpointError: its values are too large.
        """
        encoding = self.encodings.get(name)
        if encoding is None:
            return cast(values, dtype)
        result = np.empty(values.shape, np.float32)
        for part in _row_blocks(values):
            with np.errstate(over="ignore", invalid="ignore"):
                result[part] = gguf.dequantize(quantise(values[part], encoding), encoding)
        if not all_finite(result):
            largest = float(np.abs(values).max())
            raise CheckpointError(
                f"{name}: values up to {largest:g} overflow in {encoding.name}, whose scales are "
                "float16; without --quantize they are kept"
            )
        return result

    def saved_bytes(self, tensors: Mapping[str, TensorInfo]) -> int:
        """Return by how many bytes what is stored is smaller than what is read again."""
        return sum(
            byte_size(tensors[name].shape, np.dtype(np.float32))
            - encoded_size(tensors[name].shape, encoding)
            for name, encoding in self.encodings.items()
        )


def _row_blocks(values: np.ndarray) -> Iterator[slice]:
    """Yield rows in blocks: quantisers make several temporaries of their input's size."""
    step = max(1, _BLOCK_BYTES // (4 * values.shape[1]))
    return (slice(first, first + step) for first in range(0, len(values), step))


def encoded_size(shape: tuple[int, ...], encoding: Encoding) -> int:
    """Return the size of a tensor in bytes, as it is stored."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[encoding]
    return math.prod(shape) // block * block_bytes
