"""What is wrong with a checkpoint: names, shapes, dtypes and values against its configuration."""

from __future__ import annotations

import numpy as np

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.dtypes import is_float
from jaxllama.checkpoint.names import (
    EMBEDDING,
    FIELD_OF_AXIS,
    HEAD,
    entry_of,
    expected_tensors,
    layer_of,
)
from jaxllama.errors import CheckpointError, join_problems

_BLOCK = 1 << 17


def structure_problems(checkpoint: Checkpoint) -> list[str]:
    """Return all that is wrong with the names, shapes and dtypes; no weight is read."""
    config, problems = checkpoint.config, list(checkpoint.problems)
    layers = _layers(checkpoint)
    if config.num_hidden_layers != len(layers):
        problems.append(
            f"num_hidden_layers is {config.num_hidden_layers} in {checkpoint.config_source}, but "
            f"the weights have {len(layers)} layers"
        )
    expected = _expected(checkpoint)
    for name, shape in expected.items():
        info = checkpoint.tensors.get(name)
        if info is None:
            problems.append(f"{name}: missing, expected shape {shape}{_missing_hint(name)}")
        elif info.shape != shape:
            problems.append(_misshapen(name, info.shape, shape, checkpoint))
    for name, info in checkpoint.tensors.items():
        if name not in expected:
            problems.append(f"{name}: unexpected; {checkpoint.config_source} has no such layer")
        elif not is_float(info.dtype):
            problems.append(f"{name}: dtype {info.dtype}, expected a 16, 32 or 64-bit float")
    return problems


def _layers(checkpoint: Checkpoint) -> set[int | None]:
    return {layer_of(name) for name in checkpoint.tensors} - {None}


def _expected(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the shapes by name of a model of no more layers than there are weights of."""
    config = checkpoint.config
    # An absurd count of layers is not enumerated.
    most = max(len(_layers(checkpoint)), 1)
    return dict(
        expected_tensors(config.replace(num_hidden_layers=min(config.num_hidden_layers, most)))
    )


def _missing_hint(name: str) -> str:
    return "; check tie_word_embeddings" if name == HEAD else ""


def _misshapen(
    name: str, actual: tuple[int, ...], expected: tuple[int, ...], checkpoint: Checkpoint
) -> str:
    symbols = entry_of(name).shape
    wrong = [s for s, a, e in zip(symbols, actual, expected, strict=False) if a != e]
    field = FIELD_OF_AXIS[(wrong or list(symbols))[0]]
    return (
        f"{name}: shape {actual}, expected {expected} = ({', '.join(symbols)}); "
        f"check {field} in {checkpoint.config_source}"
    )


def value_problems(name: str, values: np.ndarray) -> list[str]:
    """Return what is wrong with a tensor's values: NaN or infinity."""
    if all_finite(values):
        return []
    bad = ~np.isfinite(values)
    first = tuple(int(axis[0]) for axis in np.nonzero(bad))
    kind = "NaN" if np.isnan(values[first]) else "infinite"
    return [f"{name}: {int(bad.sum())} elements NaN or infinite, the first ({kind}) at {first}"]


def all_finite(values: np.ndarray) -> bool:
    """Compare bit patterns: the exponent of a NaN or infinity, and of nothing else, is all ones.

    As integers, in blocks that stay in cache, this runs at the speed of memory; for bfloat16
    `np.isfinite` is tens of times slower.
    """
    sign = 1 << (8 * values.itemsize - 1)
    bits = values.reshape(-1).view(f"u{values.itemsize}")
    limit = int(np.array(np.inf, values.dtype).view(bits.dtype))
    magnitude = bits.dtype.type(sign - 1)
    blocks = (bits[i : i + _BLOCK] for i in range(0, bits.size, _BLOCK))
    return all(int((block & magnitude).max()) < limit for block in blocks)


def head_problems(checkpoint: Checkpoint) -> list[str]:
    """Return what is wrong with a head stored though tied: it must equal the embedding's bits."""
    first, second = checkpoint.tensors.get(EMBEDDING), checkpoint.stored_head
    if first is None or second is None:
        return []
    if (first.shape, first.dtype) == (second.shape, second.dtype):
        values = checkpoint.read(EMBEDDING).view(np.uint8), checkpoint.read(HEAD).view(np.uint8)
        if np.array_equal(*values):
            return []
    return [
        f"{HEAD}: differs from {EMBEDDING} though tie_word_embeddings is true in "
        f"{checkpoint.config_source}; set it to false to use the stored head, or remove the head"
    ]


def validate(checkpoint: Checkpoint) -> None:
    """Check every tensor against the configuration, values included.

    Raises:
        CheckpointError: all that is missing, unexpected, misshapen, of a wrong dtype, NaN or
            infinite, in one message.
    """
    problems = structure_problems(checkpoint)
    raise_problems(checkpoint, problems + all_value_problems(checkpoint))


def all_value_problems(checkpoint: Checkpoint) -> list[str]:
    """Return what is wrong with the values of all tensors that are of the shape they ought to be.

    What is known to be wrong is not read: a shape alone may ask for more memory than there is.
    """
    expected, problems = _expected(checkpoint), []
    for name, info in checkpoint.tensors.items():
        if not is_float(info.dtype) or info.shape != expected.get(name):
            continue
        try:
            problems += value_problems(name, checkpoint.read(name))
        except CheckpointError as error:
            problems.append(str(error))
    return problems + head_problems(checkpoint)


def check_finite(checkpoint: Checkpoint, label: str) -> None:
    """Refuse a checkpoint with weights that are no numbers; they are read one after another.

    Args:
        checkpoint: whose.
        label: what to call it.

    Raises:
        CheckpointError: with each such tensor, how many of its values, and the first.
    """
    problems = []
    for name in checkpoint.tensors:
        problems += value_problems(name, np.asarray(checkpoint.read(name)))
    if problems:
        raise CheckpointError(join_problems(label, problems))


def raise_problems(checkpoint: Checkpoint, problems: list[str]) -> None:
    """Raise one `CheckpointError` for all problems, if there are any."""
    if problems:
        raise CheckpointError(join_problems(checkpoint.label, problems))
