"""A checkpoint's weights as torch tensors, read when asked for; few are kept."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from safetensors import safe_open

from jaxllama.errors import CheckpointError
from parity.sources.hf import tensor_places
from parity.subjects.base import CheckpointLike
from parity.subjects.torch.arrays import to_torch

# References that walk together ask for the same weights in turn: a layer's nine are kept, since
# opening a file costs more than what is read from it.
RECENT = 9
# But no more than this: a layer of the 405B model alone has 6.4 GB.
RECENT_BYTES = 1_500_000_000
# A model no larger than this is cast once for decoding, where it is used at every step.
HELD_BYTES = 1_500_000_000


class Weights(Protocol):
    """Tensors by canonical name."""

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> torch.Tensor: ...


class TorchWeights:
    """Tensors by canonical name, in the dtype the checkpoint stores.

    A Hugging Face directory is read through safetensors' own torch binding, whoever opened it.

    Args:
        checkpoint: where the weights come from: in a run `parity.sources.source.Source` wherever
            there is a file, so that a fault in jaxllama's reader is not shared.
    """

    def __init__(self, checkpoint: CheckpointLike) -> None:
        self._checkpoint = checkpoint
        self._places: dict[str, tuple[Path, str]] = {}
        self._recent: dict[str, torch.Tensor] = {}
        path = checkpoint.path
        if checkpoint.format == "hf" and path is not None:
            directory = path if path.is_dir() else path.parent
            self._places = tensor_places(directory)

    def __contains__(self, name: str) -> bool:
        return name in (self._places or self._checkpoint.tensors)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._recent:
            self._recent[name] = self._read(name)
            while len(self._recent) > 1 and (
                len(self._recent) > RECENT
                or sum(kept.nbytes for kept in self._recent.values()) > RECENT_BYTES
            ):
                del self._recent[next(iter(self._recent))]
        return self._recent[name]

    def _read(self, name: str) -> torch.Tensor:
        if not self._places:
            return to_torch(self._checkpoint.read(name))
        if name not in self._places:
            raise CheckpointError(
                f"{self._checkpoint.path}: no tensor {name}; found {len(self._places)} others. "
                "Check that every shard was copied."
            )
        file, stored = self._places[name]
        with safe_open(file, framework="pt") as shard:
            return shard.get_tensor(stored)


class HeldWeights:
    """A checkpoint's weights in one dtype, cast when first used and kept.

    Args:
        checkpoint: where the weights come from.
        dtype: what they are cast to.
    """

    def __init__(self, checkpoint: CheckpointLike, dtype: torch.dtype) -> None:
        self._checkpoint = checkpoint  # keeps its id, by which weights are shared
        self._weights = stored_weights(checkpoint)
        self._dtype = dtype
        self._cast: dict[str, torch.Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._cast:
            self._cast[name] = self._weights[name].to(self._dtype)
        return self._cast[name]

    def share(self, model: torch.nn.Module) -> None:
        """Let parameters whose every bit is the same live in this memory, not in a copy's."""
        for name, parameter in model.named_parameters():
            if name in self and _same_bits(self[name], parameter.data):
                parameter.data = self[name]
            else:
                self._cast.pop(name, None)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors agree in dtype and in every bit; zeros have signs."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    if a.dtype != b.dtype or a.shape != b.shape or a.dtype.itemsize not in bits:
        return False
    return torch.equal(*(x.contiguous().view(bits[x.dtype.itemsize]) for x in (a, b)))


_shared: WeakValueDictionary[tuple[int, torch.dtype | None], TorchWeights | HeldWeights]
_shared = WeakValueDictionary()


def weights_for_pass(checkpoint: CheckpointLike, dtype: torch.dtype) -> TorchWeights | HeldWeights:
    """Return weights for one pass in a dtype: those that others hold, if any do."""
    return _shared.get((id(checkpoint), dtype)) or stored_weights(checkpoint)


def stored_weights(checkpoint: CheckpointLike) -> TorchWeights:
    """Return a checkpoint's weights, shared with all who ask for them."""
    found = _shared.get((id(checkpoint), None)) or TorchWeights(checkpoint)
    _shared[id(checkpoint), None] = found
    assert isinstance(found, TorchWeights)
    return found


def weights_for_decode(
    checkpoint: CheckpointLike, dtype: torch.dtype
) -> TorchWeights | HeldWeights:
    """Return weights for a run of many calls: held, and shared with other such runs, if small."""
    elements = sum(prod(info.shape) for info in checkpoint.tensors.values())
    if elements * dtype.itemsize > HELD_BYTES:
        return stored_weights(checkpoint)
    return weights_for_model(checkpoint, dtype)


def weights_for_model(checkpoint: CheckpointLike, dtype: torch.dtype) -> HeldWeights:
    """Return weights for a model that holds all of its own, shared with other such models."""
    found = _shared.get((id(checkpoint), dtype)) or HeldWeights(checkpoint, dtype)
    _shared[id(checkpoint), dtype] = found
    assert isinstance(found, HeldWeights)
    return found
