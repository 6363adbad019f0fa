"""What jaxllama reads of a checkpoint, held against parity's own reader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from jaxllama.checkpoint import Checkpoint
from jaxllama.config import LlamaConfig
from jaxllama.errors import CheckpointError
from parity.result import CauseReport, Reading, ReadingDifference, TapResult
from parity.sources.open import open_source
from parity.sources.source import Source

# Elements compared at once, so that what is compared needs no copy of a tensor.
_BLOCK = 1 << 22
# How much of other tensors is read to recognise one that was taken for another.
_OTHERS_BYTES = 1 << 30
# Differences that a cause has in full.
_SAID = 8
_ABSENT = "absent"


def second_reading(asked: object, opened: Checkpoint) -> Source | None:
    """Return a checkpoint as parity reads it, None where it is not for parity to read.

    Args:
        asked: what the caller named. A `Checkpoint` of theirs may hold more than its file does.
        opened: the same, opened by jaxllama.
    """
    if isinstance(asked, Checkpoint) or opened.path is None:
        return None
    return open_source(opened.path)


def compare_readings(subject: Checkpoint, source: Source, *, weights: bool = True) -> Reading:
    """Compare the configuration field by field and the weights bit by bit.

    A tensor of either side is in memory at a time.

    Args:
        subject: as jaxllama reads it.
        source: as parity does.
        weights: whether weights are compared, too.

    Raises:
        CheckpointError: the two are not of one shape, so that nothing can be run.
    """
    config = list(_config_differences(subject.config, source))
    _refuse(source, [one for one in config if one.what == "config.num_hidden_layers"])
    names = dict.fromkeys([*source.tensors, *subject.tensors]) if weights else ()
    found: list[ReadingDifference] = []
    for name in names:
        if one := _tensor_difference(name, subject, source, in_words=not found):
            found.append(one)
    return Reading(
        fields=len(fields(LlamaConfig)),
        tensors=len(source.tensors) if weights else 0,
        differences=(*config, *found),
    )


def as_read(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint that shows nobody its file, only what jaxllama read of it."""
    return replace(checkpoint, path=None, format="memory")


def explain_reading(
    reading: Reading, first: TapResult | None, *, tried: bool, beside: CauseReport | None
) -> CauseReport:
    """Return the readings' differences as the cause, tried on the reference.

    Args:
        reading: which has differences.
        first: the first tap beyond its limit, if any is.
        tried: whether the reference was run on what jaxllama read.
        beside: why the subject differs from the reference on what jaxllama read, None if it does
            not.
    """
    one, *others = reading.differences
    evidence = [other.said for other in others[: _SAID - 1]]
    if len(others) >= _SAID:
        evidence.append(f"and {len(others) + 1 - _SAID} more, in --json under reading")
    if first is None:
        evidence.append("no tap that was compared is moved by it beyond its limit")
    else:
        where = f"{first.tap} ({first.lane}, scenario {first.scenario}, {first.mode})"
        evidence.append(f"the first tap beyond its limit is {where}")
        agrees = "agrees with the subject in every tap" if beside is None else "differs still"
        said = agrees if tried else "was not run"
        evidence.append(f"the reference on what jaxllama read {said}")
    return CauseReport(
        id="",
        title="Another model was read than the checkpoint holds",
        summary=one.said,
        effective=f"{one.what} {one.subject}",
        configured=f"{one.what} {one.reference}, in {one.where}",
        remedy=f"Look at {one.where}: where jaxllama's reader does not have what stands there, "
        "mend it; else parity's own is wrong.",
        confirmed=tried and beside is None,
        evidence=evidence,
        others=[] if beside is None else [beside, *beside.others],
    )


def _config_differences(subject: LlamaConfig, source: Source) -> Iterator[ReadingDifference]:
    for field in fields(LlamaConfig):
        ours, theirs = getattr(source.stated, field.name), getattr(subject, field.name)
        where = source.stated.where[field.name]
        for name, theirs_of, ours_of in _parts(field.name, theirs, ours):
            if theirs_of != ours_of:
                yield ReadingDifference(f"config.{name}", repr(theirs_of), repr(ours_of), where)


def _parts(name: str, subject: Any, source: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield a field, or the fields of one that has any on both sides."""
    if is_dataclass(subject) and is_dataclass(source):
        for part in fields(subject):
            pair = getattr(subject, part.name), getattr(source, part.name)
            yield f"{name}.{part.name}", *pair
    else:
        yield name, subject, source


def _tensor_difference(
    name: str, subject: Checkpoint, source: Source, *, in_words: bool
) -> ReadingDifference | None:
    """Return how a tensor differs, None if no bit does.

    Args:
        name: canonical.
        subject: as jaxllama reads it.
        source: as parity does.
        in_words: whether to look for what became of it, which reads others.
    """
    where = source.place(name)
    if name not in source.tensors:
        return ReadingDifference(name, "a tensor of its own", _ABSENT, where)
    if name not in subject.tensors:
        return ReadingDifference(name, _ABSENT, "a tensor of its own", where)
    theirs, ours = subject.read(name), source.read(name)
    if theirs.shape != ours.shape:
        read, stored = (f"of shape {values.shape}" for values in (theirs, ours))
        _refuse(source, [ReadingDifference(name, read, stored, where)])
    if theirs.dtype != ours.dtype:
        return ReadingDifference(name, theirs.dtype.name, ours.dtype.name, where)
    at = _first_unequal(theirs, ours)
    if at is None:
        return None
    index = [int(i) for i in np.unravel_index(at, ours.shape)]
    read, stored = (f"{float(values.flat[at]):.9g}" for values in (theirs, ours))
    how = _how(name, theirs, ours, source) if in_words else ""
    return ReadingDifference(name, f"{read} at {index}{how}", stored, where)


def _first_unequal(a: np.ndarray, b: np.ndarray) -> int | None:
    """Return the first element, counted flat, of other bits."""
    first, second = _bits(a), _bits(b)
    for start in range(0, first.size, _BLOCK):
        unequal = first[start : start + _BLOCK] != second[start : start + _BLOCK]
        if unequal.any():
            return start + int(unequal.argmax())
    return None


def _how(name: str, subject: np.ndarray, source: np.ndarray, held: Source) -> str:
    """Say in passing what became of a tensor, where that is plain."""
    if source.ndim == 2 and _same(subject, source.T):
        return " (transposed)"
    if _same(subject, source.astype(ml_dtypes.bfloat16).astype(source.dtype)):
        return " (rounded through bfloat16)"
    if _same(*(np.sort(_bits(x)) for x in (subject, source))):
        return " (the same values in another order)"
    alike = [n for n, t in held.tensors.items() if n != name and t.shape == source.shape]
    for other in alike[: _OTHERS_BYTES // source.nbytes]:
        if _same(subject, held.read(other)):
            return f" (what the file has as {held.place(other).rpartition(': ')[2]})"
    return ""


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(_bits(a), _bits(b)))


def _bits(values: np.ndarray) -> np.ndarray:
    """Return an array's bits, flat: zeros have signs."""
    return np.ascontiguousarray(values).reshape(-1).view(f"u{values.dtype.itemsize}")


def _refuse(source: Source, differences: list[ReadingDifference]) -> None:
    if differences:
        raise CheckpointError(f"{source.path}: {differences[0].said}; nothing was run")
