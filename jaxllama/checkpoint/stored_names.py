"""From the tensors that a file stores to those of a model: wrappers, by-products, the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxllama.checkpoint.base import TensorInfo
from jaxllama.checkpoint.dtypes import is_float
from jaxllama.checkpoint.names import Dialect, canonical_names, from_dialect
from jaxllama.checkpoint.wrappers import unwrap
from jaxllama.config import LlamaConfig
from jaxllama.config_formats.quantised import is_part, quantised_tensors
from jaxllama.errors import CheckpointError

_DEEPEST = 3  # steps of a part's name below its layer, as in weight._data._data


@dataclass(frozen=True)
class Resolved:
    """Which stored tensor is which.

    Attributes:
        stored: stored name by canonical name.
        notes: what is read otherwise than it is stored, or left.
        problems: names unknown or present twice.
    """

    stored: Mapping[str, str]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def resolve(
    stored: Mapping[str, TensorInfo], config: LlamaConfig, dialect: Dialect, source: str
) -> Resolved:
    """Find the tensors of a model among those that are stored.

    Args:
        stored: by stored name.
        config: of the model.
        dialect: of the names.
        source: what to call the checkpoint in an error.

    Raises:
        CheckpointError: the weights are quantised, part of a larger model, or an adapter's.
    """
    # Before names are looked at: a quantised layer has none of the expected ones.
    packed = _packed(stored, dialect)
    parts = [n for n, info in stored.items() if is_part(n) or _is_narrow(info) or n in packed]
    floats = [name for name, info in stored.items() if is_float(info.dtype)]
    narrow = {name: info.dtype.name for name, info in stored.items() if not is_float(info.dtype)}
    refused, passed = quantised_tensors(parts, floats, narrow=narrow, metas=dialect == "meta")
    if refused:
        raise CheckpointError(f"{source}: {refused[0]}")
    plain, wrapped = unwrap((n for n in stored if n not in set(parts)), dialect, source)
    names, notes, problems = canonical_names(plain, config, dialect)
    return Resolved(names, (*passed, *wrapped, *notes), problems)


def _packed(stored: Mapping[str, TensorInfo], dialect: Dialect) -> set[str]:
    """Return what is stored of layers that have integers in place of their weights, or as these.

    Whatever a method calls its parts: there are dozens.
    """
    layers: dict[str, list[str]] = {}
    for name in stored:
        steps = name.split(".")
        above = (".".join(steps[:-i]) for i in range(1, min(len(steps), _DEEPEST + 1)))
        if layer := next((one for one in above if from_dialect(f"{one}.weight", dialect)), None):
            layers.setdefault(layer, []).append(name)
    found: set[str] = set()
    for layer, names in layers.items():
        weight = stored.get(f"{layer}.weight")
        decisive = names if weight is None else [f"{layer}.weight"] * (len(names) > 1)
        if any(stored[name].dtype.kind in "iu" for name in decisive):
            found.update(names)
    return found


def _is_narrow(info: TensorInfo) -> bool:
    return info.dtype.name.startswith("float8")
