"""Merge a LoRA adapter, as PEFT saves it, into the weights it was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.checks import value_problems
from jaxllama.checkpoint.dtypes import cast
from jaxllama.checkpoint.hf.safetensors_file import read_tensor
from jaxllama.checkpoint.hf.weights import left_beside
from jaxllama.checkpoint.lora.contents import WEIGHTS, Contents, Factors, read_contents
from jaxllama.checkpoint.lora.manifest import check_adapter_if_told
from jaxllama.checkpoint.lora.matching import by_pattern, matches
from jaxllama.checkpoint.lora.settings import CONFIG, AdapterSettings, read_settings
from jaxllama.errors import CheckpointError, join_problems


def merge_lora(checkpoint: Checkpoint, adapter: Path) -> Checkpoint:
    """Return a checkpoint whose weights are W + scale * B A, still read lazily.

    Modules, ranks and alphas are found by PEFT's rules; factors of modules that adapter_config.json
    does not name are left out, as PEFT does, and noted.

    Args:
        checkpoint: what the adapter was trained on.
        adapter: directory with adapter_config.json and adapter_model.safetensors.

    Raises:
        CheckpointError: the adapter is damaged, of a kind not supported, does not fit, or is not as
            the manifest beside it says, where there is one.

    Source: Hu et al. 2021 (arXiv 2106.09685); the scale as in PEFT's `LoraLayer`.
    """
    check_adapter_if_told(adapter)
    config = files.inside(adapter, CONFIG)
    settings = read_settings(files.read_json(config), str(config))
    contents = read_contents(checkpoint, adapter)
    used = {
        name: factors
        for name, factors in contents.factors.items()
        if settings.targets.has(_module(name))
    }
    named = _named(checkpoint, settings)
    problems = [] if named else [f"{CONFIG} names no module of this model"]
    problems += _wrong_ranks(used, settings)
    if problems:
        raise CheckpointError(join_problems(str(adapter), problems))
    scales = {name: _scale(settings, name, factors.rank) for name, factors in used.items()}

    def read(name: str) -> np.ndarray:
        base = checkpoint.reader(name)
        if name in contents.whole:
            base = cast(_stored(contents, name), base.dtype)
        if name not in used:
            return base
        a, b = (read_tensor(contents.file, slot) for slot in (used[name].a, used[name].b))
        _refuse_values(contents, f"{name}.lora_A", a)
        _refuse_values(contents, f"{name}.lora_B", b)
        # Of an embedding the factors give the transpose.
        left, right = (a.T, b.T) if used[name].transposed else (b, a)
        return _merged(base, left, right, scales[name])

    notes = [f"LoRA adapter {adapter} merged into {len(used)} tensors", *contents.notes]
    if contents.whole:
        notes.append(f"{_some(contents.whole)} stored whole in the adapter: the base's is replaced")
    notes += _left_out(named, contents, settings, used)
    notes += left_beside(adapter, {WEIGHTS})
    return replace(checkpoint, reader=read, notes=(*checkpoint.notes, *notes))


def _named(checkpoint: Checkpoint, settings: AdapterSettings) -> list[str]:
    """Return the weights of all modules that an adapter's configuration is for."""
    return [
        name
        for name, info in checkpoint.tensors.items()
        if len(info.shape) == 2 and settings.targets.has(_module(name))
    ]


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _stored(contents: Contents, name: str) -> np.ndarray:
    values = read_tensor(contents.file, contents.whole[name])
    _refuse_values(contents, name, values)
    return values


def _refuse_values(contents: Contents, name: str, values: np.ndarray) -> None:
    if bad := value_problems(name, values):
        raise CheckpointError(join_problems(str(contents.file), bad))


def _merged(base: np.ndarray, left: np.ndarray, right: np.ndarray, scale: float) -> np.ndarray:
    """Add in float32 at least, in blocks of rows, and round once."""
    wide = np.promote_types(np.float32, base.dtype if base.dtype == np.float64 else np.float32)
    result = np.empty_like(base)
    right = right.astype(wide)
    step = max(1, (1 << 22) // base.shape[1])
    for i in range(0, len(base), step):
        rows = slice(i, i + step)
        change = (left[rows].astype(wide) @ right) * wide.type(scale)
        result[rows] = cast(base[rows].astype(wide) + change, base.dtype)
    return result


def _wrong_ranks(used: dict[str, Factors], settings: AdapterSettings) -> list[str]:
    wrong = [
        f"{name}: lora_A has rank {factors.rank}, {CONFIG} says {stated}"
        for name, factors in used.items()
        if (stated := by_pattern(settings.ranks, _module(name), settings.rank)) != factors.rank
    ]
    more = f"; so do {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return [f"{wrong[0]}{more}; put it into r or rank_pattern"] if wrong else []


def _scale(settings: AdapterSettings, name: str, rank: int) -> float:
    """Return alpha / r, or alpha / sqrt(r) for rsLoRA."""
    alpha = by_pattern(settings.alphas, _module(name), settings.alpha)
    return float(alpha) / (rank**0.5 if settings.rslora else rank)


def _left_out(
    named: list[str], contents: Contents, settings: AdapterSettings, used: dict[str, Factors]
) -> list[str]:
    """Say what of the two files has no counterpart in the other: PEFT leaves it without effect."""
    notes, modules = [], [*map(_module, used)]
    if unnamed := [name for name in contents.factors if name not in used]:
        notes.append(f"{_some(unnamed)} left as it is, as by PEFT: {CONFIG} does not name it")
    bare = [name for name in named if name not in used]
    if bare and settings.targets.modules is not None:
        notes.append(f"{_some(bare)} left as it is: {CONFIG} names it, but there are no factors")
    for key in settings.targets.saved:
        if not any(
            replace(settings.targets, saved=[key]).is_saved(_module(n)) for n in contents.whole
        ):
            notes.append(f"modules_to_save: {key!r} is left as it is: no weights of it are stored")
    for field, patterns in (("rank_pattern", settings.ranks), ("alpha_pattern", settings.alphas)):
        for key in patterns:
            if not any(matches(key, module) for module in modules):
                notes.append(f"{field}: {key!r} is for no adapted module")
    return notes


def _some(names: Iterable[str]) -> str:
    listed = [*names]
    return listed[0] if len(listed) == 1 else f"{listed[0]} and {len(listed) - 1} more"
