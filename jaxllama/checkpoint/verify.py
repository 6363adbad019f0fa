"""Compare two checkpoints tensor by tensor, and explain what differs by a known transform."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.checks import head_problems, structure_problems, value_problems
from jaxllama.checkpoint.dtypes import cast
from jaxllama.checkpoint.manifest import digest
from jaxllama.checkpoint.names import entry_of, half_split, heads_of, interleave, layer_of
from jaxllama.checkpoint.open import open_checkpoint
from jaxllama.checkpoint.settings import compare_settings
from jaxllama.dtypes import FLOATS
from jaxllama.model import Llama

Kind = Literal["missing", "unexpected", "differs", "invalid"]


@dataclass(frozen=True)
class Difference:
    """A tensor that is not the same in both checkpoints.

    Attributes:
        name: canonical name.
        kind: how.
        detail: both dtypes, shapes or values, by how much.
        explanation: the known transform that turns the first into the second, if one does.
    """

    name: str
    kind: Kind
    detail: str
    explanation: str = ""

    def __str__(self) -> str:
        """Return one line."""
        because = f" [{self.explanation}]" if self.explanation else ""
        return f"{self.name}: {self.detail}{because}"


@dataclass(frozen=True)
class Verification:
    """The comparison of two checkpoints.

    Attributes:
        digests: of the first checkpoint's tensors, by canonical name.
        differences: tensors that differ.
        config: what differs of the configuration, the tokenizer and the generation settings, as
            one line each.
        notes: the same of what one of the formats has no place for; not counted as different.
    """

    digests: dict[str, str]
    differences: tuple[Difference, ...]
    config: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether every tensor has the same dtype, shape and bits, and no setting differs."""
        return not self.differences and not self.config


def verify(
    first: str | os.PathLike[str] | Checkpoint | Llama,
    second: str | os.PathLike[str] | Checkpoint | Llama,
) -> Verification:
    """Compare all that two checkpoints of any formats hold: tensors to the bit, and settings.

    A model is a checkpoint of its parameters.

    What would stop either from being loaded is a difference too. One tensor of each is in memory
    at a time; a few more where one differs.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    a, b = open_checkpoint(first), open_checkpoint(second)
    digests, differences = {}, []
    for name in a.tensors:
        values = a.read(name)
        digests[name] = digest(values)
        if name not in b.tensors:
            differences.append(Difference(name, "missing", "only in the first"))
            continue
        other = b.read(name)
        invalid = value_problems(name, values) + value_problems(name, other)
        if digest(other) != digests[name]:
            detail = _detail(values, other)
            explanation = _explain(a, b, name, values, other)
            differences.append(Difference(name, "differs", detail, explanation))
        elif invalid:
            detail = invalid[0].removeprefix(f"{name}: ")
            differences.append(Difference(name, "invalid", f"equal in both, but {detail}"))
    differences += [
        Difference(name, "unexpected", "only in the second")
        for name in b.tensors
        if name not in a.tensors
    ]
    named, beside = {found.name for found in differences}, []
    for side, checkpoint in (("first", a), ("second", b)):
        for problem in structure_problems(checkpoint) + head_problems(checkpoint):
            name, _, detail = problem.partition(": ")
            if " " in name or name.endswith(".json"):  # of no tensor
                beside.append(f"in the {side}: {problem}")
            elif name not in named:
                kind: Kind = "invalid" if name in a.tensors else "unexpected"
                differences.append(Difference(name, kind, f"in the {side}: {detail or problem}"))
    settings, notes = compare_settings(a, b)
    return Verification(digests, tuple(differences), (*beside, *settings), tuple(notes))


def _detail(values: np.ndarray, other: np.ndarray) -> str:
    if values.shape != other.shape:
        return f"shape {values.shape} against {other.shape}"
    dtypes = "" if values.dtype == other.dtype else f"{values.dtype} against {other.dtype}, "
    changed, strange, largest, size = 0, 0, 0.0, 0.0
    first, second = values.reshape(-1), other.reshape(-1)
    for i in range(0, first.size, 1 << 20):
        x, y = (v[i : i + (1 << 20)].astype(np.float64) for v in (first, second))
        with np.errstate(invalid="ignore"):
            gap = np.abs(y - x)
        changed += int(np.count_nonzero(~(gap == 0)))
        strange += int(np.count_nonzero(~np.isfinite(gap)))
        largest = max(largest, float(np.max(gap, initial=0.0, where=np.isfinite(gap))))
        size = max(size, float(np.nanmax(np.abs(x), initial=0.0)))
    share = f"{changed} of {values.size} elements"
    beyond = f"; {strange} of them are NaN or infinite" if strange else ""
    return f"{dtypes}{share} differ, by up to {largest:.3g} (values up to {size:.3g}){beyond}"


def _explain(a: Checkpoint, b: Checkpoint, name: str, values: np.ndarray, other: np.ndarray) -> str:
    """Return the first known transform of the first checkpoint that gives the second's tensor."""
    for explanation, candidate in _transforms(a, name, values, other):
        if _same(candidate, other):
            return explanation
        narrow = cast(candidate, other.dtype)
        if candidate.dtype != other.dtype and _same(narrow, other):
            return f"{explanation}, then cast to {other.dtype}"
    return ""


def _same(candidate: np.ndarray, other: np.ndarray) -> bool:
    if candidate.shape != other.shape or candidate.dtype != other.dtype:
        return False
    first, second = (np.ascontiguousarray(v).reshape(-1).view(np.uint8) for v in (candidate, other))
    return np.array_equal(first, second)


def _transforms(
    a: Checkpoint, name: str, values: np.ndarray, other: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    if values.dtype != other.dtype:
        yield f"cast from {values.dtype} to {other.dtype}", cast(values, other.dtype)
        for via in FLOATS.values():
            if via not in (values.dtype, other.dtype):
                rounded = cast(cast(values, via), other.dtype)
                yield f"cast from {values.dtype} to {other.dtype} by way of {via}", rounded
    else:
        for via in FLOATS.values():
            if via.itemsize < values.dtype.itemsize or via.itemsize == values.itemsize == 2:
                yield f"rounded through {via}", cast(cast(values, via), values.dtype)
    if values.ndim == 2:
        yield "transposed", values.T
    entry = entry_of(name)
    if entry.rotary is not None:
        own = heads_of(entry, a.config)
        for heads, whose in (
            (own, "its"),
            (a.config.num_attention_heads, "q's"),
            (a.config.num_key_value_heads, "k's"),
        ):
            if values.shape[0] % (2 * heads) == 0:
                by = f"by {whose} {heads} heads"
                yield f"rows interleaved {by} (q/k permutation)", interleave(values, heads)
                yield f"rows half-split {by} (q/k permutation undone)", half_split(values, heads)
    yield from _neighbours(a, name)


def _neighbours(a: Checkpoint, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what may have been stored in a tensor's place: its twin, or another layer's."""
    swaps = (
        ("gate_proj", "up_proj"),
        ("input_layernorm", "post_attention_layernorm"),
        ("k_proj", "v_proj"),
        ("q_proj", "o_proj"),
    )
    for pair in swaps:
        for one, twin in (pair, pair[::-1]):
            swapped = name.replace(f".{one}.", f".{twin}.")
            if swapped != name and swapped in a.tensors:
                yield f"swapped with {twin}", a.read(swapped)
    layer = layer_of(name)
    if layer is not None:
        for near in (layer - 1, layer + 1):
            neighbour = name.replace(f".{layer}.", f".{near}.", 1)
            if neighbour in a.tensors:
                yield f"layer {near}'s", a.read(neighbour)
    pairs = {"model.embed_tokens.weight": "lm_head.weight"}
    pairs |= {head: table for table, head in pairs.items()}
    if pairs.get(name) in a.tensors:
        yield f"{pairs[name]}'s", a.read(pairs[name])
