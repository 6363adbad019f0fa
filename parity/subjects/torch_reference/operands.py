"""What the reference's programs read: taps, weights, constants, and what a call is given."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from jaxllama.config import LlamaConfig
from parity.subjects.torch_reference.model import TorchModel
from parity.subjects.torch_reference.operations import Value
from parity.subjects.torch_reference.program import (
    PROGRAM,
    Program,
    inv_freq_program,
    rope_constants,
)
from parity.taps import WEIGHT_OF

_ANOTHER_WEIGHT = re.compile(r"weight of (\w+)(?: in layer (\d+))?")


def program_of(tap: str, config: LlamaConfig) -> Program | None:
    """Return what computes a tap, by its short name; None for what the reference is given."""
    if tap == "rope.inv_freq":
        return inv_freq_program(config.rope_scaling)
    return PROGRAM.get(tap)


def weight_name(tap: str, layer: int | None, config: LlamaConfig) -> str:
    """Return the canonical name of the weight behind a tap, given by its short name."""
    if tap == "logits" and config.tie_word_embeddings:
        tap = "embed"
    return WEIGHT_OF.get(tap) or WEIGHT_OF[f"layers.{tap}"].replace("layers", f"layers.{layer}")


class Operands(Mapping[str, Value]):
    """The operands of one tap's program, by name; weights are read when asked for.

    Args:
        reference: whose weights and constants they are.
        tap: short name.
        layer: its number; None outside of layers.
        seen: earlier taps of the stage by short name, and what the call is given: `tokens`,
            `positions`, `mask`, `rope.inv_freq`, `keys` and `values`.
    """

    def __init__(
        self, reference: TorchModel, tap: str, layer: int | None, seen: Mapping[str, Tensor]
    ) -> None:
        self._reference, self._tap, self._layer, self._seen = reference, tap, layer, seen
        config = reference.config
        self._constants: dict[str, Value] = rope_constants(config) | {
            "eps": config.rms_norm_eps,
            "scale": reference.scale(),
            "kv_heads": reference.kv_head_of_query(),
        }

    def __getitem__(self, name: str) -> Value:
        if name in self._seen:
            return self._seen[name]
        if name == "weight":
            return self._weight(self._tap, self._layer)
        if other := _ANOTHER_WEIGHT.fullmatch(name):
            layer = self._layer if other[2] is None else int(other[2])
            return self._weight(other[1], layer)
        return self._constants[name]

    def _weight(self, tap: str, layer: int | None) -> Tensor:
        return self._reference.weight(weight_name(tap, layer, self._reference.config))

    def __iter__(self) -> Iterator[str]:
        return iter((*self._seen, *self._constants))

    def __len__(self) -> int:
        return len(self._seen) + len(self._constants)
