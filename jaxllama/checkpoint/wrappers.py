"""Names of tensors that were saved from inside a wrapper: what is around the model's own name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from jaxllama.checkpoint.names import TABLE, Dialect, from_dialect, is_buffer
from jaxllama.config_formats.quantised import is_part
from jaxllama.errors import CheckpointError

# Modules that wrappers put between a model and its parts, at any depth.
_MODULES = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "module": "DataParallel or DeepSpeed",
}
_MOST_PARTS = max(len(str(entry.hf).split(".")) for entry in TABLE)
_ADAPTER_PARTS = (".lora_A.", ".lora_B.", ".base_layer.", ".modules_to_save.", ".lora_magnitude_")


def unwrap(
    stored: Iterable[str], dialect: Dialect, source: str
) -> tuple[dict[str, str], list[str]]:
    """Return the plain name of every stored one, and a note on each wrapper that is in them.

    Args:
        stored: names of tensors.
        dialect: of the names inside the wrappers.
        source: what to call the checkpoint in an error.

    Raises:
        CheckpointError: the tensors are of a model within a larger one, or beside an adapter.
    """
    stored = list(stored)
    if dialect == "gguf":  # one program writes them all
        return {name: name for name in stored}, []
    _refuse_adapter(stored, source)
    plain, notes = without_modules(stored)
    prefix = common_prefix(plain.values(), dialect)
    if not prefix:
        return plain, notes
    outside = [name for name, inner in plain.items() if not inner.startswith(prefix)]
    if 2 * sum(from_dialect(plain[name], dialect) is not None for name in outside) > len(plain):
        return plain, notes  # the model is there without it, and a few strays with
    if outside:
        raise CheckpointError(
            f"{source}: {len(plain) - len(outside)} of {len(plain)} tensor names begin with "
            f"{prefix!r}, others, such as {outside[0]}, do not: a Llama within a larger model; "
            "save the inner model alone"
        )
    notes.append(note(len(plain), f"{prefix!r}", "in front of them"))
    return {name: inner.removeprefix(prefix) for name, inner in plain.items()}, notes


def without_modules(stored: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return every stored name without the wrappers at any depth, and a note on each of these."""
    plain, notes = {name: name for name in stored}, []
    for module, whose in _MODULES.items():
        around = [name for name, inner in plain.items() if module in inner.split(".")]
        if around:
            notes.append(note(len(around), f"'{module}.' of {whose}", "in them"))
        for name in around:
            plain[name] = ".".join(p for p in plain[name].split(".") if p != module)
    return plain, notes


def note(count: int, what: str, where: str) -> str:
    """Return a note on `what` stands `where` in some names and is not read."""
    return f"{count} tensor names have {what} {where}: read without it"


def _refuse_adapter(names: Iterable[str], source: str) -> None:
    parts = [name for name in names if any(part in name for part in _ADAPTER_PARTS)]
    if parts:
        raise CheckpointError(
            f"{source}: {len(parts)} tensors, such as {parts[0]}, are of a PEFT adapter beside the "
            "weights that it changes; save what PEFT's `merge_and_unload()` returns, or give the "
            "base model, with the adapter as --lora of `jaxllama convert`"
        )


def common_prefix(names: Iterable[str], dialect: Dialect) -> str:
    """Return what stands before names of the table where names themselves are not in it."""
    found: Counter[str] = Counter()
    for name in names:
        if is_buffer(name) or is_part(name) or from_dialect(name, dialect):
            continue
        parts = name.split(".")
        # No name of the table has more parts.
        starts = range(max(1, len(parts) - _MOST_PARTS), len(parts))
        inner = (i for i in starts if from_dialect(".".join(parts[i:]), dialect))
        if (first := next(inner, None)) is not None:
            found[".".join(parts[:first]) + "."] += 1
    return found.most_common(1)[0][0] if found else ""
