"""One operator of a subject's run, on which edits are tried.

Shapes: B batch, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.edits.edit import EVERYWHERE, Edit, Scope, axes_of
from parity.diagnose.edits.kinds import apply_edits
from parity.diagnose.edits.visibility import READ, Sees, Sight, fitting_rules
from parity.diagnose.evidence import HELD_TAPS, Evidence
from parity.diagnose.mutated_reference import MutatedReference
from parity.subjects.torch.arrays import to_torch
from parity.subjects.torch_reference.operands import (
    Operands,
    cache_operands,
    call_operands,
    keys_of_layers,
    program_of,
)
from parity.subjects.torch_reference.operations import Value
from parity.subjects.torch_reference.program import Program, Step, operand_names, run_program
from parity.taps import AXES

# Rows of the failing stage that the cheapest trial looks at.
ROWS = 256
# And elements: of logits a row is a vocabulary.
ELEMENTS = 1 << 21
# How many times as large as the largest operand an edited program's values may become.
GROWTH = 8
# What an edit cannot be tried on: shapes that do not fit, operands that are not shown, constants
# that are plain numbers.
UNFIT = (
    AttributeError,
    KeyError,
    IndexError,
    ValueError,
    RuntimeError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
)


@dataclass(frozen=True)
class Known:
    """A program and what its steps make of a trial's inputs."""

    program: Program
    values: Mapping[str, Value]

    @cached_property
    def steps(self) -> dict[str, Step]:
        """The steps by name."""
        return {step.name: step for step in self.program}


@dataclass(frozen=True)
class OperatorTrial:
    """What an operator was given and what it made of it.

    Attributes:
        tap: short name of what it made.
        layer: its number; None outside of layers.
        program: what the reference computes, as it is understood so far.
        seen: what the operator may have read, by name.
        target: what it made.
        compared: which cells count, broadcastable to the target.
        reference: whose weights and arithmetic are used.
        lane: dtype of the subject's run.
        call: the number of the call, and its columns.
    """

    tap: str
    layer: int | None
    program: Program
    seen: Mapping[str, Tensor]
    target: Tensor
    compared: Tensor
    reference: MutatedReference
    lane: str
    call: tuple[int, int] = (0, 0)

    @cached_property
    def operands(self) -> Operands:
        """What the program reads."""
        return Operands(self.reference, self.tap, self.layer, self.seen)

    @cached_property
    def largest(self) -> int:
        """Elements that a step's value may have: an edit is not to take the memory of a model."""
        operands = (self.operands[name] for name in operand_names(self.program))
        sizes = [value.numel() for value in operands if isinstance(value, Tensor)]
        return GROWTH * max(self.target.numel(), *sizes, 1)

    @cached_property
    def rules(self) -> list[Sees]:
        """Which rules of seeing show what a call's queries see; none of any other tap."""
        read = [self.base.bool(), *(self.seen.get(name) for name in READ[1:])]
        if self.tap != "mask" or any(value is None for value in read):
            return []
        return fitting_rules(Sight(*read), self.target.bool(), self.compared)  # type: ignore[arg-type]

    @cached_property
    def base(self) -> Tensor:
        """What the reference makes of the same."""
        return self.run(self.program)

    def run(self, program: Program) -> Tensor:
        """Return what a program makes of the operator's inputs."""
        with torch.no_grad():
            made = run_program(program, self.operands, self.reference)
            return made.double() if made.dtype == torch.bool else made

    def values(self, program: Program, known: Known | None = None) -> dict[str, Value]:
        """Return the values of a program's steps, and of the operands that they read.

        Args:
            program: any.
            known: of a program that is much the same: what it has in common is not made again.
        """
        values: dict[str, Value] = {}
        before = {} if known is None else known.steps
        changed: set[str] = set()
        with torch.no_grad():
            for step in program:
                for name in step.inputs:
                    if name not in values:
                        values[name] = self.operands[name]
                same = before.get(step.name)
                # Steps that no edit touched, which is most, are the same objects: quickly seen.
                if (same is step or same == step) and changed.isdisjoint(step.inputs):
                    assert known is not None
                    values[step.name] = known.values[step.name]
                    continue
                changed.add(step.name)
                inputs = [values[name] for name in step.inputs]
                values[step.name] = made = step.fn(self.reference, *inputs)
                if isinstance(made, Tensor) and made.numel() > self.largest:
                    raise ValueError(f"{step.name}: {tuple(made.shape)}, larger than any operand")
        return values

    def value(
        self, edits: Sequence[Edit], scope: Scope = EVERYWHERE, known: Known | None = None
    ) -> Tensor:
        """Return what the edited program makes, within a scope.

        Args:
            edits: made one after the other; with `known`, on top of its program.
            scope: where they hold.
            known: what a program that they are made in makes.
        """
        if not scope.in_call(*self.call):
            return self.base
        if known is None:
            made = self.run(apply_edits(self.program, edits))
        else:
            program = apply_edits(known.program, edits)
            found = self.values(program, known)[program[-1].name]
            assert isinstance(found, Tensor)
            made = found.double() if found.dtype == torch.bool else found
        cells = scope.cells(self.tap, self.target)
        return made if cells is None else torch.where(cells, made, self.base)

    def left(
        self, edits: Sequence[Edit], scope: Scope = EVERYWHERE, known: Known | None = None
    ) -> float:
        """Return the share of the target that edits leave, in the root of squares.

        1e300 where the edits cannot be made, or leave what is not finite.
        """
        try:
            made = self.value(edits, scope, known)
        except UNFIT:
            return 1e300
        return self.distance(made)

    def distance(self, made: Tensor) -> float:
        """Return how far a value is from the target, in units of it."""
        residual = self.residual(made)
        found = 1e300 if residual is None else float(residual.norm())
        return found if np.isfinite(found) else 1e300

    def residual(self, made: Tensor) -> Tensor | None:
        """Return a value less the target, in units of it, flat; None if the shapes differ."""
        if made.shape != self.target.shape:
            return None
        gap = made.double() - self.target
        alike = (made == self.target) | (made.isnan() & self.target.isnan())
        gap = torch.where(self.compared & ~alike, gap, 0.0)
        return (gap / self.size).flatten()

    @cached_property
    def size(self) -> Tensor:
        """The root of the sum of squares of the target."""
        seen = torch.where(self.compared & self.target.isfinite(), self.target, 0.0)
        return seen.norm().clamp_min(1e-300)

    def at_tokens(self, columns: Tensor) -> OperatorTrial:
        """Return the same operator at some of the call's columns."""

        def chosen(name: str, value: Tensor) -> Tensor:
            letters = AXES.get(name) or AXES.get(f"layers.{name}") or _axes_of_call(name)
            if "T" not in letters or value.ndim != len(letters):
                return value
            return value.index_select(letters.index("T"), columns)

        axis = axes_of(self.tap).index("T")
        wide = self.compared.shape[axis] > 1
        return replace(
            self,
            seen={name: chosen(name, value) for name, value in self.seen.items()},
            target=self.target.index_select(axis, columns),
            compared=self.compared.index_select(axis, columns) if wide else self.compared,
        )

    @cached_property
    def few(self) -> OperatorTrial:
        """The operator at as many tokens as a first look needs, those farthest off among them."""
        letters = axes_of(self.tap)
        if "T" not in letters or self.tap == "mask":  # cells are cheap, and some rules turn them
            return self
        axis, rows = letters.index("T"), self.target.shape[letters.index("B")]
        count, size = self.target.shape[axis], self.target.numel() // self.target.shape[axis]
        most = max(8, min(ROWS // rows, ELEMENTS // size))
        if count <= most:
            return self
        gap = torch.where(self.compared, self.base - self.target, 0.0).nan_to_num(0, 0, 0).abs()
        far = gap.amax([i for i in range(gap.ndim) if i != axis]).topk(most // 2).indices
        even = torch.linspace(0, count - 1, most - most // 2).long()
        return self.at_tokens(torch.cat([far, even]).unique())

    @cached_property
    def halves(self) -> tuple[OperatorTrial, OperatorTrial]:
        """The operator at every second token, and at the others; both the same if there is one."""
        letters = axes_of(self.tap)
        few = "T" not in letters or self.target.shape[letters.index("T")] < 4
        if few or self.tap == "mask":
            return self, self
        count = self.target.shape[letters.index("T")]
        return self.at_tokens(torch.arange(0, count, 2)), self.at_tokens(torch.arange(1, count, 2))


def operator_trial(evidence: Evidence) -> OperatorTrial | None:
    """Return the operator of the tap where subject and reference part; None if it has no program.

    What the subject shows of its inputs is what it is tried on.
    """
    tap, reference = evidence.short, evidence.reference
    cached = evidence.chunks is not None
    program = reference.program(tap, evidence.layer, cached=cached)
    if program is None or evidence.backward or (tap in HELD_TAPS and not cached):
        return None
    start, stop = evidence.columns.start, evidence.columns.stop
    seen = call_operands(evidence.inputs, start, stop)
    seen |= {n: _wide(array) for n, array in evidence.subject.items() if array.dtype != bool}
    seen["rope.inv_freq"] = _wide(evidence.true_setup["rope.inv_freq"])
    seen["mask"] = to_torch(np.array(evidence.mask))
    if cached:
        seen |= cache_operands(evidence.inputs, evidence.sizes)
    elif tap in ("attn_scores", "attn_context") and evidence.layer:
        made = {i: (_wide(k), _wide(v)) for i, (k, v) in evidence.written.items()}
        seen |= keys_of_layers(made, evidence.layer)
    if tap in HELD_TAPS:
        if evidence.layer is None or evidence.layer not in evidence.written:
            return None
        seen["made"] = _wide(evidence.written[evidence.layer][list(HELD_TAPS).index(tap)])
    target = seen.pop(tap)
    compared = compared_cells(evidence, target)
    call = len(evidence.sizes) - 1, stop - start
    found = OperatorTrial(
        tap, evidence.layer, program, seen, target, compared, reference, evidence.lane, call
    )
    own = program_of(tap, evidence.config)
    assert own is not None
    try:
        if "mask" in operand_names(own) and not _masked_by_rule(found, cached):
            found = replace(found, program=own)
        return found if found.base.shape == target.shape else None
    except UNFIT:
        return None


def _masked_by_rule(trial: OperatorTrial, cached: bool) -> bool:
    """Return whether the scenario's mask is what its program makes of the scenario."""
    program = program_of("mask", trial.reference.config, cached=cached)
    assert program is not None
    mask, made = trial.seen["mask"].double(), trial.run(program)
    # What pads see is nobody's business.
    return made.shape == mask.shape and bool(((made == mask) | ~trial.seen["q_valid"]).all())


def mask_trial(evidence: Evidence) -> OperatorTrial | None:
    """Return the program of a call's mask, and which keys its queries see; None if that is unknown.

    A mask that is shown tells, if it is wrong; else the weights that are not zero, in any head.
    """
    reference, cached = evidence.reference, evidence.chunks is not None
    program = reference.program("mask", None, cached=cached)
    tried = reference.changes_of("attn_probs", evidence.layer)
    if program is None or tried or not evidence.masked:
        return None
    if "mask" in evidence.setup and "mask" in evidence.flagged:
        shown = np.asarray(evidence.setup["mask"])
    elif "attn_probs" in evidence.subject and evidence.short == "attn_probs":
        shown = np.asarray((evidence.subject["attn_probs"] > 0).any(axis=1))
    else:
        return None
    start, stop = evidence.columns.start, evidence.columns.stop
    seen = call_operands(evidence.inputs, start, stop)
    if cached:
        seen |= cache_operands(evidence.inputs, evidence.sizes)
    seen["mask"] = to_torch(np.array(evidence.mask))
    compared = torch.from_numpy(np.array(evidence.valid))[:, :, None]
    if cached:  # cells of pads' keys mean nothing there
        compared = compared & torch.from_numpy(np.array(evidence.held))[:, None, :]
    call, target = (len(evidence.sizes) - 1, stop - start), _wide(shown)
    found = OperatorTrial(
        "mask", None, program, seen, target, compared, reference, evidence.lane, call
    )
    try:
        alike = found.base.shape == target.shape
        return found if alike and _masked_by_rule(found, cached) else None
    except UNFIT:
        return None


def compared_cells(evidence: Evidence, target: Tensor) -> Tensor:
    """Return which cells of a tap count: of real tokens, and of visible keys."""
    valid, letters = torch.from_numpy(np.array(evidence.valid)), axes_of(evidence.short)
    if "B" not in letters:
        return torch.ones((1,) * target.ndim, dtype=torch.bool)
    if evidence.short in HELD_TAPS:
        held = torch.from_numpy(np.array(evidence.held))
        return held[:, :, None, None]
    if "S" in letters:
        cells = torch.from_numpy(np.array(evidence.mask & evidence.valid[:, :, None]))[:, None]
        # Weights of hidden keys count too: they ought to be nothing.
        return (
            cells if evidence.short == "attn_scores" else valid[:, None, :, None].expand_as(cells)
        )
    shape = [1] * target.ndim
    shape[letters.index("B")], shape[letters.index("T")] = valid.shape
    return valid.view(shape)


def _axes_of_call(name: str) -> str:
    """Return the letters of the axes of what a call is given; see `call_operands`."""
    return "BT1" if name.startswith("q_") else {"tokens": "BT"}.get(name, "")


def _wide(array: np.ndarray) -> Tensor:
    return to_torch(np.asarray(array, np.float64))
