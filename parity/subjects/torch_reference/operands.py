"""What the reference's programs read: taps, weights, constants, and what a call is given."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from jaxllama.config import LlamaConfig
from parity.inputs import Inputs
from parity.subjects.torch.arrays import to_torch
from parity.subjects.torch_reference.model import TorchModel
from parity.subjects.torch_reference.operations import Cast, Value
from parity.subjects.torch_reference.program import (
    CACHED_MASK,
    MASK,
    PROGRAM,
    Program,
    Step,
    inv_freq_program,
    operand_names,
    rope_constants,
)
from parity.taps import WEIGHT_OF

# More than any distance.
NO_WINDOW = 2**31 - 1
# What is computed once for all layers of a call.
SETUP = ("mask", "rope.inv_freq")
_ANOTHER_WEIGHT = re.compile(r"weight of (\w+)(?: in layer (\d+))?")


def program_of(tap: str, config: LlamaConfig, *, cached: bool = False) -> Program | None:
    """Return what computes a tap; None for what has no program.

    Args:
        tap: its short name.
        config: the model's.
        cached: whether the call goes through a cache.
    """
    if tap == "rope.inv_freq":
        program = inv_freq_program(config.rope_scaling)
        return (*program, Step("rope.inv_freq", (program[-1].name,), Cast("wide")))
    if tap == "mask":
        return CACHED_MASK if cached else MASK
    return PROGRAM.get(tap)


def whole_program(tap: str, config: LlamaConfig, *, cached: bool = False) -> Program | None:
    """Return what computes a tap and whatever it reads of what a call sets up; see `program_of`."""
    program = program_of(tap, config)
    for setup in SETUP if program is not None else ():
        if setup in operand_names(program or ()):
            program = (*(program_of(setup, config, cached=cached) or ()), *(program or ()))
    return program


def call_operands(inputs: Inputs, start: int, stop: int) -> dict[str, Tensor]:
    """Return what a call is given, by name; masks are computed of it.

    Args:
        inputs: the scenario.
        start: the call's first column.
        stop: the column after its last.
    """
    columns = np.arange(stop)
    segments = np.zeros_like(inputs.tokens) if inputs.segments is None else inputs.segments
    window = NO_WINDOW if inputs.window is None else inputs.window
    of_rows = {
        "column": np.broadcast_to(columns, (len(inputs.tokens), stop)),
        "position": inputs.positions[:, :stop],
        "segment": segments[:, :stop],
        "valid": inputs.valid[:, :stop],
    }
    made = {f"k_{name}": array[:, None, :] for name, array in of_rows.items()}
    made |= {f"q_{name}": array[:, start:, None] for name, array in of_rows.items()}
    # Pads see what tokens do where the scenario lets them see anything, else nothing.
    sees = inputs.valid | inputs.mask.any(-1)
    made |= {"q_sees": sees[:, start:stop, None]}
    made |= {"tokens": inputs.tokens[:, start:stop].astype(np.int64)}
    made |= {"positions": inputs.positions[:, start:stop]}
    numbers = {
        "window": torch.tensor(window),
        "unlimited": torch.tensor(inputs.window is None),
        "undivided": torch.tensor(inputs.segments is None),
        "zero": torch.tensor(0),
        "start": torch.tensor(start),
    }
    return {n: to_torch(np.array(a)) for n, a in made.items()} | numbers


def cache_operands(inputs: Inputs, sizes: Sequence[int]) -> dict[str, Tensor]:
    """Return what a cache's program reads but for keys and values, of all columns so far.

    Args:
        inputs: the scenario.
        sizes: columns of every call so far.
    """
    stop = sum(sizes)
    real = to_torch(inputs.valid[:, :stop].astype(np.int64))
    segments = np.zeros_like(inputs.tokens) if inputs.segments is None else inputs.segments
    call = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    counted = real.cumsum(1)
    starts = torch.tensor([sum(sizes[:number]) for number in range(len(sizes))])[call]
    before = torch.where(starts > 0, counted[:, (starts - 1).clamp(min=0)], 0)
    return {
        "before": before,
        "count": counted - before,
        "c_valid": real.bool(),
        "own": (counted - 1).clamp(min=0),
        "call": call,
        "c_position": to_torch(inputs.positions[:, :stop].astype(np.int64)),
        "c_segment": to_torch(segments[:, :stop].astype(np.int64)),
        "capacity": torch.tensor(inputs.tokens.shape[1]),
        "row": torch.arange(len(real))[:, None].expand(real.shape),
        "one": torch.tensor(1),
    }


# Of so many layers before it an operator may read the keys and values.
LAYERS_BEFORE = 8


def keys_of_layers(made: Mapping[int, tuple[Tensor, Tensor]], layer: int) -> dict[str, Tensor]:
    """Return keys and values of the layers before one, by name: no right operator reads them.

    Args:
        made: by number of the layer.
        layer: the number of the one that might read them.
    """
    found: dict[str, Tensor] = {}
    for other in range(max(0, layer - LAYERS_BEFORE), layer):
        if other in made:
            names = f"keys of layer {other}", f"values of layer {other}"
            found |= dict(zip(names, made[other], strict=True))
    return found


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
        self.constants: dict[str, Value] = rope_constants(config) | {
            "eps": config.rms_norm_eps,
            "scale": reference.scale(),
            "kv_heads": reference.kv_head_of_query(),
            "factor per call": 1.0,
        }

    def __getitem__(self, name: str) -> Value:
        if name in self._seen:
            return self._seen[name]
        if name == "weight":
            return self._weight(self._tap, self._layer)
        if other := _ANOTHER_WEIGHT.fullmatch(name):
            layer = self._layer if other[2] is None else int(other[2])
            return self._weight(other[1], layer)
        return self.constants[name]

    def _weight(self, tap: str, layer: int | None) -> Tensor:
        return self._reference.weight(weight_name(tap, layer, self._reference.config))

    def __iter__(self) -> Iterator[str]:
        return iter((*self._seen, *self.constants))

    def __len__(self) -> int:
        return len(self._seen) + len(self.constants)
