"""Merge a LoRA adapter, as PEFT saves it, into the weights it was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.dtypes import cast
from jaxllama.checkpoint.hf.safetensors_file import read_tensor
from jaxllama.checkpoint.hf.weights import left_beside
from jaxllama.checkpoint.lora.adapter import Adapter, module_of, open_adapter, refuse_values
from jaxllama.checkpoint.lora.contents import WEIGHTS, Contents
from jaxllama.checkpoint.lora.matching import matches
from jaxllama.checkpoint.lora.settings import CONFIG


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

    Source: Hu et al. 2021 (arXiv 2106.09685).
    """
    opened = open_adapter(checkpoint, adapter)
    contents, used = opened.contents, opened.factors

    def read(name: str) -> np.ndarray:
        base = checkpoint.reader(name)
        if name in contents.whole:
            base = cast(_stored(contents, name), base.dtype)
        if name not in used:
            return base
        a, b = opened.pair(name)
        # Of an embedding the factors give the transpose.
        left, right = (a.T, b.T) if used[name].transposed else (b, a)
        return _merged(base, left, right, opened.scale(name))

    notes = [f"LoRA adapter {adapter} merged into {len(used)} tensors", *contents.notes]
    if contents.whole:
        notes.append(f"{_some(contents.whole)} stored whole in the adapter: the base's is replaced")
    notes += _left_out(opened)
    notes += left_beside(adapter, {WEIGHTS})
    return replace(checkpoint, reader=read, notes=(*checkpoint.notes, *notes))


def _stored(contents: Contents, name: str) -> np.ndarray:
    values = read_tensor(contents.file, contents.whole[name])
    refuse_values(contents, name, values)
    return values


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


def _left_out(adapter: Adapter) -> list[str]:
    """Say what of the two files has no counterpart in the other: PEFT leaves it without effect."""
    settings, contents, used = adapter.settings, adapter.contents, adapter.factors
    notes, modules = [], [*map(module_of, used)]
    if unnamed := [name for name in contents.factors if name not in used]:
        notes.append(f"{_some(unnamed)} left as it is, as by PEFT: {CONFIG} does not name it")
    bare = [name for name in adapter.named if name not in used]
    if bare and settings.targets.modules is not None:
        notes.append(f"{_some(bare)} left as it is: {CONFIG} names it, but there are no factors")
    for key in settings.targets.saved:
        if not any(
            replace(settings.targets, saved=[key]).is_saved(module_of(n)) for n in contents.whole
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
