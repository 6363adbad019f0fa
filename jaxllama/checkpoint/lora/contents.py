"""adapter_model.safetensors: factors and whole weights, by the weight of the model they are for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.dtypes import is_float
from jaxllama.checkpoint.hf.safetensors_file import Slot, read_header
from jaxllama.checkpoint.lora.names import plain_names
from jaxllama.checkpoint.lora.settings import unsupported
from jaxllama.checkpoint.names import EMBEDDING, HEAD, from_dialect
from jaxllama.errors import CheckpointError, join_problems

WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
_WHOLE = re.compile(r"base_model\.model\.(.+?)(?:\.base_layer|\.modules_to_save)?\.weight")
# Parts of other kinds of LoRA, by the field of adapter_config.json that ought to say so.
_OTHERS = {
    "use_dora": re.compile(r".+\.lora_magnitude_vector(?:\.weight)?"),
    "lora_bias": re.compile(r".+\.lora_(?:embedding_)?[AB]\.bias"),
}


@dataclass(frozen=True)
class Factors:
    """The two factors of a weight.

    Attributes:
        a: [r, columns], of an embedding [r, V].
        b: [rows, r], of an embedding [D, r].
        transposed: whether their product is the weight's transpose, as of an embedding.
    """

    a: Slot
    b: Slot
    transposed: bool

    @property
    def rank(self) -> int:
        """What they have in common."""
        return self.a.shape[0]


@dataclass(frozen=True)
class Contents:
    """What an adapter stores, by canonical name of the weight.

    Attributes:
        file: where.
        factors: to be added.
        whole: weights that replace the base's.
        notes: on names that are read otherwise than they are stored.
    """

    file: Path
    factors: Mapping[str, Factors]
    whole: Mapping[str, Slot]
    notes: Sequence[str] = ()


@dataclass
class _Found:
    """What has been seen so far."""

    pairs: dict[str, dict[str, Slot]] = field(default_factory=dict)
    transposed: set[str] = field(default_factory=set)
    whole: dict[str, Slot] = field(default_factory=dict)
    tied: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    others: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_contents(checkpoint: Checkpoint, adapter: Path) -> Contents:
    """Read the header of an adapter's weights and sort its tensors.

    Raises:
        CheckpointError: it is missing or damaged, or holds what does not fit the model.
    """
    file = files.inside(adapter, WEIGHTS)
    if not file.exists() and (adapter / "adapter_model.bin").exists():
        raise CheckpointError(
            f"{adapter}: holds adapter_model.bin alone, which is a pickle; load the adapter with "
            f"PEFT and save it again, which writes {WEIGHTS}"
        )
    found = _Found()
    header = read_header(file)
    plain, notes = plain_names(header, str(adapter))
    for name, slot in header.items():
        _sort(found, plain[name], slot, checkpoint)
    factors = {}
    for name, pair in found.pairs.items():
        if pair.keys() == {"A", "B"}:
            factors[name] = Factors(pair["A"], pair["B"], name in found.transposed)
            found.problems += _misfits(name, factors[name], checkpoint.tensors[name].shape)
        else:
            found.problems.append(f"{name}: has lora_{next(iter(pair))} alone")
    for name, slot in found.whole.items():
        found.problems += _unlike(name, slot, checkpoint.tensors[name].shape)
    problems = found.problems[:20] + _collapsed(found)
    if problems or not (factors or found.whole):
        raise CheckpointError(
            join_problems(str(adapter), problems or ["holds no LoRA factors of this model"])
        )
    return Contents(file, factors, found.whole, notes)


def _sort(found: _Found, name: str, slot: Slot, checkpoint: Checkpoint) -> None:
    if kind := next((kind for kind, part in _OTHERS.items() if part.fullmatch(name)), None):
        found.others.setdefault(kind, []).append(name)
        return
    factor, whole = _FACTOR.fullmatch(name), _WHOLE.fullmatch(name)
    match = factor or whole
    target = from_dialect(f"{match.group(1)}.weight", "hf") if match else None
    if checkpoint.config.tie_word_embeddings and target in (HEAD, EMBEDDING):
        found.tied.append(name)
    elif target is None or target not in checkpoint.tensors:
        found.strange.append(name)
    elif not is_float(slot.dtype) or (factor is not None and len(slot.shape) != 2):
        found.problems.append(
            f"{name}: {slot.dtype} of shape {slot.shape}, expected a float matrix"
        )
    elif factor is None:
        found.whole[target] = slot
    else:
        found.pairs.setdefault(target, {})[factor.group(3)] = slot
        if factor.group(2):
            found.transposed.add(target)


def _misfits(name: str, factors: Factors, shape: tuple[int, ...]) -> list[str]:
    a, b = factors.a.shape, factors.b.shape
    made = (a[1], b[0]) if factors.transposed else (b[0], a[1])
    if made != shape or a[0] != b[1]:
        return [f"{name}: lora_B {b} times lora_A {a} does not give {shape}"]
    return []


def _unlike(name: str, slot: Slot, shape: tuple[int, ...]) -> list[str]:
    if slot.shape == shape:
        return []
    resized = len(shape) == 2 and slot.shape[1:] == shape[1:] and name in (EMBEDDING, HEAD)
    remedy = (
        "; the vocabulary was resized before training, so resize the base likewise (transformers' "
        "resize_token_embeddings)"
        if resized
        else ""
    )
    return [f"{name}: shape {slot.shape}, the base has {shape}{remedy}"]


def _collapsed(found: _Found) -> list[str]:
    """Say like problems once, with how many there are and one of them."""
    problems = [f"{_some(names)}: {unsupported(kind)}" for kind, names in found.others.items()]
    if found.tied:
        problems.append(
            f"{_some(found.tied)}: for one of head and embedding, which are tied in this model and "
            "would move together; untie the base first: save it with tie_word_embeddings false and "
            "lm_head.weight a copy of model.embed_tokens.weight"
        )
    if found.strange:
        problems.append(
            f"{_some(found.strange)}: no weight of this model; expected base_model.model."
            "MODULE.lora_A.weight and lora_B.weight, of modules of the base"
        )
    return problems


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} tensors, such as {names[0]}"
