"""Merge a LoRA adapter, as PEFT saves it, into the weights it was trained on."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.checks import value_problems
from jaxllama.checkpoint.dtypes import cast, is_float
from jaxllama.checkpoint.hf.safetensors_file import Slot, read_header, read_tensor
from jaxllama.checkpoint.names import from_dialect
from jaxllama.errors import CheckpointError, join_problems

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# Settings that change what the factors mean, unless they hold one of these values.
_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "alora_invocation_tokens": (None,),
    "trainable_token_indices": (None,),
    "megatron_config": (None,),
    "layer_replication": (None,),
}


def merge_lora(checkpoint: Checkpoint, adapter: Path) -> Checkpoint:
    """Return a checkpoint whose weights are W + scale * B A, still read lazily.

    Args:
        checkpoint: what the adapter was trained on.
        adapter: directory with adapter_config.json and adapter_model.safetensors.

    Raises:
        CheckpointError: the adapter is damaged, of a kind not supported, or does not fit.

    Source: Hu et al. 2021 (arXiv 2106.09685); the scale as in PEFT's `LoraLayer`.
    """
    settings = files.read_json(files.inside(adapter, _CONFIG))
    weights = files.inside(adapter, _WEIGHTS)
    slots = read_header(weights)
    problems = [
        f"{key} {settings[key]!r} is not supported"
        for key, allowed in _ONLY.items()
        if key in settings and settings[key] not in allowed
    ]
    pairs: dict[str, dict[str, Slot]] = {}
    for name, slot in slots.items():
        found = _FACTOR.fullmatch(name)
        target = from_dialect(f"{found.group(1)}.weight", "hf") if found else None
        if not found or target is None or target not in checkpoint.tensors:
            problems.append(f"{name}: no weight of this model")
        elif len(slot.shape) != 2 or not is_float(slot.dtype):
            problems.append(f"{name}: {slot.dtype} of shape {slot.shape}, expected a float matrix")
        else:
            pairs.setdefault(target, {})[found.group(2)] = slot
    for name, pair in pairs.items():
        problems += _misfits(name, pair, checkpoint.tensors[name].shape)
    scales = {}
    for name, pair in pairs.items():
        if pair.keys() == {"A", "B"}:
            scales[name] = _scale(settings, name, pair["A"].shape[0], problems)
    if problems or not pairs:
        problems = problems or ["holds no LoRA factors"]
        raise CheckpointError(join_problems(str(adapter), problems[:50]))

    def read(name: str) -> np.ndarray:
        base = checkpoint.reader(name)
        if name not in pairs:
            return base
        a, b = (read_tensor(weights, pairs[name][key]) for key in "AB")
        if bad := value_problems(f"{name}.lora_A", a) + value_problems(f"{name}.lora_B", b):
            raise CheckpointError(join_problems(str(adapter), bad))
        return _merged(base, a, b, scales[name])

    note = f"LoRA adapter {adapter} merged into {len(pairs)} tensors"
    return replace(checkpoint, reader=read, notes=(*checkpoint.notes, note))


def _merged(base: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """Add in float32 at least, in blocks of rows, and round once."""
    wide = np.promote_types(np.float32, base.dtype if base.dtype == np.float64 else np.float32)
    result = np.empty_like(base)
    a = a.astype(wide)
    step = max(1, (1 << 22) // base.shape[1])
    for i in range(0, len(base), step):
        rows = slice(i, i + step)
        change = (b[rows].astype(wide) @ a) * wide.type(scale)
        result[rows] = cast(base[rows].astype(wide) + change, base.dtype)
    return result


def _misfits(name: str, pair: dict[str, Slot], shape: tuple[int, ...]) -> list[str]:
    if pair.keys() != {"A", "B"}:
        return [f"{name}: has lora_{next(iter(pair))} alone"]
    a, b = pair["A"].shape, pair["B"].shape
    if (b[0], a[1]) != shape or a[0] != b[1]:
        return [f"{name}: lora_B {b} times lora_A {a} does not give {shape}"]
    return []


def _scale(settings: dict[str, Any], name: str, rank: int, problems: list[str]) -> float:
    """Return alpha / r, or alpha / sqrt(r) for rsLoRA; patterns override both by module."""
    module = name.removesuffix(".weight")
    alpha = _pattern(settings, "alpha_pattern", module, settings.get("lora_alpha"))
    stated = _pattern(settings, "rank_pattern", module, settings.get("r"))
    if stated != rank:
        problems.append(f"{name}: lora_A has rank {rank}, {_CONFIG} says {stated!r}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        problems.append(f"lora_alpha {alpha!r} is not a number")
        return 0.0
    return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)


def _pattern(settings: dict[str, Any], key: str, module: str, default: Any) -> Any:
    for pattern, value in (settings.get(key) or {}).items():
        if module == pattern or module.endswith("." + pattern.removeprefix("^").lstrip(".")):
            return value
    return default
