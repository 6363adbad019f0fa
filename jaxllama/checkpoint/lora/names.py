"""Names in adapter_model.safetensors, where wrappers and adapters' own names are in them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from jaxllama.checkpoint.wrappers import common_prefix, note, without_modules
from jaxllama.errors import CheckpointError

_PEFTS = "base_model.model."
# What stands between a module and `weight`; a state that PEFT did not save itself has the adapter's
# own name after it.
_PART = r"lora_(?:embedding_)?[AB]|lora_magnitude_vector|modules_to_save"
_ADAPTER = re.compile(rf"(.+\.(?:{_PART}))\.(?!(?:weight|bias)$)([^.]+)((?:\.(?:weight|bias))?)")
_MODULE = re.compile(rf"(.+?)\.(?:(?:{_PART}|base_layer)(?:\.(?:weight|bias))?|weight)")


def plain_names(stored: Iterable[str], source: str) -> tuple[dict[str, str], list[str]]:
    """Return the name that PEFT would have saved each tensor under, and a note on what is around.

    Args:
        stored: names of tensors.
        source: what to call the adapter in an error.

    Raises:
        CheckpointError: there are several adapters.
    """
    plain, notes = without_modules(stored)
    plain, adapters = _without_adapter(plain)
    if len(adapters) > 1:
        raise CheckpointError(
            f"{source}: holds several adapters: {', '.join(map(repr, sorted(adapters)))}; save one "
            "by PEFT's save_pretrained(..., selected_adapters=[...])"
        )
    notes += [note(count, repr(f".{name}"), "in them") for name, count in adapters.items()]
    modules = {}
    for name, inner in plain.items():
        if found := _MODULE.fullmatch(inner.removeprefix(_PEFTS)):
            modules[name] = found.group(1)
    if not (prefix := common_prefix((f"{m}.weight" for m in modules.values()), "hf")):
        return plain, notes
    around = [name for name, module in modules.items() if module.startswith(prefix)]
    for name in around:
        plain[name] = _PEFTS + plain[name].removeprefix(_PEFTS).removeprefix(prefix)
    return plain, [*notes, note(len(around), repr(prefix), "in front of the module's")]


def _without_adapter(plain: dict[str, str]) -> tuple[dict[str, str], dict[str, int]]:
    """Return names without those of adapters, and how many tensors each of these has."""
    adapters: dict[str, int] = {}
    made = dict(plain)
    for name, inner in plain.items():
        if found := _ADAPTER.fullmatch(inner):
            made[name] = found.group(1) + found.group(3)
            adapters[found.group(2)] = adapters.get(found.group(2), 0) + 1
    return made, adapters
