"""Other orders of casts than the reference's: no error, so no verdict knows of them; said in notes.

Who rounds less than the reference, or at another place, errs as little as honest implementations
do. But every rounding shows in the bits: one that is left out, or comes elsewhere, moves a value by
up to half a unit in the last place, and so a quarter of all values to a neighbour. So the bits of
isolated operators are compared with those of the reference, and where they are others, with those
of other orders of casts.

Values are made up, of the magnitudes of activations: what an operator rounds is in its code, and so
nothing else has to be run beside the subject.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from jaxllama.config import LlamaConfig
from parity.diagnose.cast_orders import orders_of
from parity.diagnose.edits.edit import in_words
from parity.inputs import Inputs
from parity.noise.chains import runs_one_operator
from parity.subjects.base import Arrays, CheckpointLike, Subject
from parity.subjects.torch.arrays import to_numpy, to_torch
from parity.subjects.torch_reference.operands import Operands
from parity.subjects.torch_reference.operations import Arithmetic
from parity.subjects.torch_reference.program import PROGRAM, Program, run_program
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import AXES, LAYER_TAPS, split_name

LANE = "bf16"
# The bits of so many values must be others, at the least. One rounding more or less changes 1/4:
# the mean of an error that is even within half a unit in the last place; less where most values do
# not feel it, as of rotations by small angles (1/11). What float32 inside changes is another
# matter, on any machine: with an error of c float32 roundoffs, 2^-24 each, a value is so near the
# middle of two neighbours, 2^-8 apart, in c of 2^15 cases, and c is the root of the terms of a sum.
FEWEST = 1 / 32
# The finding must be so many times what two honest forms of the reference differ in (where products
# cancel, bits say nothing of casts), and of what an order of casts leaves that is to explain it.
CLEAR = 8
# Angles of later positions are rounded in float32 by what bfloat16 sees.
LAST_POSITION = 1024


@dataclass
class ExactInside:
    """The run's dtype with float64 where float32 is usual: rounds where the reference does."""

    compute: torch.dtype = torch.bfloat16
    wide: torch.dtype = torch.float64
    backwards: bool = False

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Contract the last axis of `a` with the last but one of `b`, rounding once."""
        return (a.double() @ b.double()).to(a.dtype)


@dataclass(frozen=True)
class Operator:
    """One operator of a layer on known values.

    Attributes:
        tap: short name of what it makes.
        layer: its number; None outside of layers.
        operands: what it is given, by the names that programs read.
        shown: what the subject makes of it.
    """

    tap: str
    layer: int | None
    operands: Mapping[str, Tensor]
    shown: np.ndarray

    def run(
        self, program: Program, reference: TorchReference, arithmetic: Arithmetic
    ) -> np.ndarray:
        """Return what a program makes of it, with the reference's weights."""
        operands = Operands(reference, self.tap, self.layer, self.operands)
        with torch.no_grad():
            return to_numpy(run_program(program, operands, arithmetic))


def cast_notes(subject: Subject, inputs: Inputs, checkpoint: CheckpointLike) -> list[str]:
    """Return what is to be said of a subject's casts, a sentence an operator.

    Args:
        subject: in bfloat16; of one that cannot be forced nothing can be said.
        inputs: a batch that it can be run on; its tokens do not matter.
        checkpoint: whose weights it has.
    """
    counted = inputs.valid & (inputs.positions < LAST_POSITION)
    if subject.dtype != LANE or not subject.can_force or not counted.any():
        return []
    reference = TorchReference(checkpoint, dtype=LANE)
    layers = checkpoint.config.num_hidden_layers
    found: dict[str, dict[int | None, Counter[str]]] = {}
    for one in _operators(subject, inputs, reference):
        if bits := _other_bits(one, reference, counted):
            found.setdefault(one.tap, {})[one.layer] = bits
    return [
        f"{_place(tap, list(by_layer), layers)} ({LANE}): {said}"
        for tap, by_layer in found.items()
        if (said := _said(tap, sum(by_layer.values(), Counter())))
    ]


def _other_bits(
    one: Operator, reference: TorchReference, counted: np.ndarray
) -> Counter[str] | None:
    """Return how many elements are the same as in the reference and in each other order of casts;
    None where the reference's are, or say nothing.
    """
    ours = one.run(PROGRAM[one.tap], reference, reference)
    if ours.shape != one.shown.shape:
        return None
    bits = Counter({"all": ours[counted].size, "reference": _equal(one.shown, ours, counted)})
    if bits["reference"] >= (1 - FEWEST) * bits["all"]:
        return None
    exact = one.run(PROGRAM[one.tap], reference, ExactInside())
    bits["between"] = _equal(exact, ours, counted)
    for said, order in orders_of(one.tap).items():
        bits[said] = _equal(one.shown, one.run(order.program, reference, reference), counted)
    return bits


def _place(tap: str, layers: Sequence[int | None], of: int) -> str:
    if tap not in LAYER_TAPS:
        return tap
    within = [layer for layer in layers if layer is not None]
    return f"layers.*.{tap}" if len(within) == of else f"{tap} in layer {in_words(within)}"


def _said(tap: str, bits: Counter[str]) -> str:
    """Say what is found of an operator; empty if nothing."""
    orders = orders_of(tap)
    share = {said: bits[said] / bits["all"] for said in ("reference", "between", *orders)}
    published = [said for said, order in orders.items() if order.published]
    lost = 1 - max(share[said] for said in ("reference", *published))
    if lost <= max(FEWEST, CLEAR * (1 - share["between"])):
        return ""
    found = (
        f"{share['reference']:.0%} of elements have the reference's bits, which with float32 and "
        f"with float64 inside are the same in {share['between']:.1%}; "
    )
    best = max(orders, key=lambda said: share[said])
    if 1 - share[best] > lost / CLEAR:
        return found + "no order of casts that is known explains it"
    return found + f"{best} explains it: {share[best]:.1%}"


def _operators(subject: Subject, inputs: Inputs, reference: TorchReference) -> Iterator[Operator]:
    """Yield each operator of each layer that a subject computes of known values."""
    layers, run = reference.config.num_hidden_layers, subject.start(inputs)
    setup = {
        "positions": to_torch(np.array(inputs.positions)),
        "rope.inv_freq": reference.inv_freq().to(reference.wide),
    }
    run.step()
    before: Arrays = {}
    for stage in range(1, layers + 2):
        made = _values(stage, reference.config, inputs, before)
        shown = run.step({n: x for n, x in made.items() if split_name(n)[0] not in subject.absent})
        operands = setup | _rounded({n.split(".")[-1]: x for n, x in (before | made).items()})
        before = {n: x for n, x in made.items() if n.endswith(".output")}
        if stage == 1 and "layers.input" in subject.absent:
            continue  # it works on its own embedding
        for name, value in shown.items():
            tap = name.split(".")[-1]
            if orders_of(tap) and runs_one_operator(name, subject.absent):
                yield Operator(tap, split_name(name)[1], operands, value)


def _rounded(given: Arrays) -> dict[str, Tensor]:
    """Return values by short name as operands: rounded to the lane's dtype, and as given."""
    exact = {name: to_torch(value.astype(np.float32)) for name, value in given.items()}
    rounded = {name: x.to(torch.bfloat16) for name, x in exact.items() if name != "attn_probs"}
    if "v_proj" in rounded:  # of a layer
        rounded |= {"values": rounded["v_proj"], "attn_probs": exact["attn_probs"]}
    return rounded | {f"{name} as given": x for name, x in exact.items()}


def _values(stage: int, c: LlamaConfig, inputs: Inputs, before: Arrays) -> Arrays:
    """Return by name what a stage computes with: as many bits as float32 holds, in float64, as the
    reference's are, so that nothing is compiled anew for another dtype.

    A subject need not take its residual stream from a tap's name: it is the sum that it would make.
    """
    B, T = inputs.tokens.shape
    sizes = {"B": B, "T": T, "S": T, "N": c.num_attention_heads, "K": c.num_key_value_heads}
    sizes |= {"H": c.head_dim, "D": c.hidden_size, "F": c.intermediate_size}
    rng = np.random.default_rng(stage)
    last = stage == c.num_hidden_layers + 1
    made = {}
    for name in ["norm"] if last else [f"layers.{stage - 1}.{name}" for name in LAYER_TAPS]:
        value = rng.standard_normal([sizes[axis] for axis in AXES[split_name(name)[0]]])
        if name.endswith("attn_probs"):
            value = np.where(inputs.mask[:, None], np.exp(value), 0.0)
            value /= np.maximum(value.sum(-1, keepdims=True), 1e-30)
        made[name] = value.astype(np.float32).astype(np.float64)
    if not last:
        prefix = f"layers.{stage - 1}."
        if before:
            made[f"{prefix}input"] = before[f"layers.{stage - 2}.output"]
        terms = (made[f"{prefix}{name}"].astype(ml_dtypes.bfloat16) for name in ("input", "o_proj"))
        made[f"{prefix}post_attention"] = sum(terms).astype(np.float64)  # type: ignore[union-attr]
    return made


def _equal(one: np.ndarray, other: np.ndarray, counted: np.ndarray) -> int:
    """Return how many elements of the counted tokens are the same in the lane's dtype."""
    a, b = (x[counted].astype(ml_dtypes.bfloat16).astype(np.float32) for x in (one, other))
    return int((a == b).sum())
