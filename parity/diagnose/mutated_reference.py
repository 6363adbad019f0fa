"""The reference, made wrong on purpose: changed taps and changed weights, any number of them.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, H head dim, D model dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from parity.diagnose.edits.edit import EVERYWHERE, Edit
from parity.diagnose.edits.kinds import apply_edits, edited_within
from parity.diagnose.mutations import CacheWrites, Mutation, MutationSite, change_gradient
from parity.inputs import Inputs
from parity.subjects.base import CheckpointLike, Run
from parity.subjects.torch.arrays import Recorder
from parity.subjects.torch_reference.model import LayerContext, Variant
from parity.subjects.torch_reference.operands import (
    SETUP,
    Operands,
    cache_operands,
    call_operands,
    keys_of_layers,
    program_of,
    whole_program,
)
from parity.subjects.torch_reference.program import Program, operand_names, run_program
from parity.subjects.torch_reference.run import TorchRun
from parity.subjects.torch_reference.subject import TorchReference


class MutatedReference(TorchReference):
    """The reference with some changes; without any, it is the reference.

    Args:
        checkpoint: as for the reference.
        changes: made one after the other, where they meet.
        dtype: as for the reference.
        variant: as for the reference.
        nudge: -1, 0 or 1: where values that a change rounds are moved to before.
    """

    def __init__(
        self,
        checkpoint: CheckpointLike,
        changes: Sequence[Mutation] = (),
        *,
        dtype: str = "f64",
        variant: Variant = "eager",
        nudge: int = 0,
    ) -> None:
        super().__init__(checkpoint, dtype=dtype, variant=variant)
        self.changes = tuple(changes)
        self.checkpoint = checkpoint
        self.nudge = nudge
        # Of the call under way.
        self.given: dict[str, Tensor] = {}

    def as_variant(self, dtype: str, variant: Variant, nudge: int = 0) -> MutatedReference:
        """Return the same in another dtype or another order of summing."""
        return MutatedReference(
            self.checkpoint, self.changes, dtype=dtype, variant=variant, nudge=nudge
        )

    def noise_variants(self, lane: str, *, isolated: bool = False) -> list[MutatedReference]:
        """Return the variants whose rounding is the noise of this reference.

        They are those of a run (see `parity.lockstep.setup`), made wrong like this one, but float64
        has one of its own, for a change may round; where one does, there are two more, for the
        values that stand at a tie.
        """
        found = [] if isolated else [self.as_variant(lane, "reordered")]
        found += [self.as_variant(lane, "eager")] if lane != "f64" else []
        if any(change.rounds for change in self.changes):
            found += [self.as_variant(lane, "eager", nudge) for nudge in (-1, 1)]
            found += [self.as_variant(lane, "reordered")] if isolated else []
        return found

    def start_grad(self, inputs: Inputs) -> Run:
        self.given = call_operands(inputs, 0, inputs.tokens.shape[1])
        return super().start_grad(inputs)

    def with_changes(self, changes: Sequence[Mutation]) -> MutatedReference:
        """Return the same with more changes."""
        return MutatedReference(self.checkpoint, (*self.changes, *changes), dtype=self.dtype)

    def program(self, tap: str, layer: int | None, *, cached: bool = False) -> Program | None:
        """Return what computes a tap of what a call is given, edits included.

        None where it is no program's any more. A mask or a table of frequencies that is none is
        read, not computed.

        Args:
            tap: short name.
            layer: its number; None outside of layers.
            cached: whether the call goes through a cache.
        """
        own = program_of(tap, self.config, cached=cached)
        changes = self.changes_of(tap, layer)
        if own is None or any(change.value is not None for change in changes):
            return None
        setups: Program = ()
        for name in SETUP:
            wrong = self.changes_of(name, None)
            if name in operand_names(own) and all(change.value is None for change in wrong):
                program = program_of(name, self.config, cached=cached)
                assert program is not None
                setups += apply_edits(program, edits_of(wrong))
        return apply_edits((*setups, *own), edits_of(changes))

    def changes_of(self, tap: str, layer: int | None) -> list[Mutation]:
        """Return the changes of a tap, by its short name."""
        return [
            change
            for change in self.changes
            if change.tap == tap and (change.layers is None or layer in change.layers)
        ]

    def start(self, inputs: Inputs) -> Run:
        return MutatedRun(self, inputs)

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> Run:
        super().start_decode(inputs, chunks)  # which holds the weights
        return MutatedRun(self, inputs, chunks)

    def weight(self, name: str) -> Tensor:
        """Return a weight as the faulty reader gives it."""
        read: Callable[[str], Tensor] = super().weight
        for change in self.changes:
            if change.weight is not None:
                read = _reading(change, read, super().weight)
        return read(name)

    def setup(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: dict[int, tuple[Tensor, Tensor]] | None,
        tap: Recorder,
    ) -> tuple[Tensor, LayerContext]:
        edited = EditedTap(self, None, tap, None, self.given)
        x, around = super().setup(tokens, positions, mask, cache, edited)
        given = self.given | {n: edited.seen[n] for n in ("positions", *SETUP)}
        return x, EditedContext(**vars(around), given=given, made={})

    def loss(self, logits: Tensor, inputs: Inputs) -> Tensor:
        changed = [change.loss for change in self.changes if change.loss is not None]
        return (changed[-1] if changed else super().loss)(logits, inputs)

    def layer(self, i: int, x: Tensor, around: LayerContext, tap: Recorder) -> Tensor:
        assert isinstance(around, EditedContext)
        edited = EditedTap(self, i, tap, around, around.given)
        return super().layer(i, x, replace(around, tap=edited), edited)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, tap: Recorder) -> Tensor:
        assert isinstance(tap, EditedTap)
        tap.seen |= {"keys": k, "values": v}
        return super().attend(q, k, v, mask, tap)

    def head(self, x: Tensor, tap: Recorder) -> Tensor:
        edited = EditedTap(self, None, tap, None, {})
        edited.seen["output"] = x
        return super().head(x, edited)


class MutatedRun(TorchRun):
    """A pass of a `MutatedReference`."""

    _written: dict[int, tuple[Tensor, Tensor]] | None = None

    def _embed(self, start: int, stop: int, tap: Recorder) -> None:
        reference = self._reference
        assert isinstance(reference, MutatedReference)
        reference.given = call_operands(self._inputs, start, stop)
        sizes = tuple(b - a for a, b in self._ranges if b <= stop)
        if self._cache is not None:
            reference.given |= cache_operands(self._inputs, sizes)
        super()._embed(start, stop, tap)
        if self._cache is None:
            return
        self._written = {} if self._written is None else self._written
        held = CacheWrites(sizes, self._batch(self._inputs.valid), self._written)
        assert isinstance(self._around, EditedContext)
        self._around = replace(self._around, held=held)


@dataclass
class EditedContext(LayerContext):
    """A layer's context with what its call is given, and whose cache holds what changes make of it.

    Attributes:
        given: what the call is given, see `call_operands`.
        made: keys and values of the layers so far, without a cache; see `keys_of_layers`.
        held: of the cache; None without one.
        tap: of the layer at hand.
    """

    given: dict[str, Tensor]
    made: dict[int, tuple[Tensor, Tensor]]
    held: CacheWrites | None = None
    tap: EditedTap | None = None

    def remember(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values to the layer's cache, change it, and return all that it holds."""
        assert self.tap is not None
        if self.held is None:
            self.tap.given = self.given | keys_of_layers(self.made, layer)
            self.made[layer] = k, v
            return super().remember(layer, k, v)
        assert self.cache is not None
        written = self.held.written
        past = written.get(layer, (k[:, :0], v[:, :0]))
        written[layer] = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        k, v = super().remember(layer, k, v)
        self.tap.seen |= {"keys": k, "values": v}
        self.tap.given = dict(self.given)
        made = []
        for name, value, wrote in zip(("keys", "values"), (k, v), written[layer], strict=True):
            self.tap.given["made"] = wrote
            made.append(self.tap.edit(name, value))
        k, v = made
        self.cache[layer] = k, v
        return k, v


class EditedTap(Recorder):
    """Changes values before they are recorded."""

    def __init__(
        self,
        reference: TorchReference,
        layer: int | None,
        tap: Recorder,
        around: EditedContext | None,
        given: dict[str, Tensor],
    ) -> None:
        self._reference, self._layer, self._tap, self._around = reference, layer, tap, around
        self.seen: dict[str, Tensor] = {}
        self.given = given
        self.values = tap.values

    def __call__(self, name: str, value: Tensor, *views: Any, **named: Any) -> Tensor:
        shown = self._tap(name, self.edit(name, value), *views, **named)
        for change in self._changes(name):
            if change.pulled is not None:
                shown = change_gradient(shown, change.pulled)
        self.seen[name] = shown
        return shown

    def edit(self, name: str, value: Tensor) -> Tensor:
        """Return what the changes of this tap make of its value."""
        edits: list[Edit] = []
        for change in self._changes(name):
            if not change.scope.in_call(*self._call()):
                continue
            if change.value is not None:
                value = change.value(self._site(name, value)).to(value.dtype)
            elif change.edits:
                here = [*edits, *change.edits]
                edits = edits if change.scope.axes else here
                made = self._edited(name, here, value).to(value.dtype)
                cells = change.scope.cells(name, value)
                value = made if cells is None else torch.where(cells, made, value)
        return value

    def _call(self) -> tuple[int, int]:
        """Return the number of the call under way, and its columns."""
        assert isinstance(self._reference, MutatedReference)
        given = self._reference.given
        number = int(given["call"][-1]) if "call" in given else 0
        return number, given["tokens"].shape[1] if given else 0

    def _edited(self, name: str, edits: Sequence[Edit], value: Tensor) -> Tensor:
        """Return what an edited program makes of the taps seen so far, or of what is handed on."""
        config, cached = self._reference.config, "before" in self.given
        program = program_of(name, config, cached=cached)
        assert program is not None
        edited = edited_within(program, edits)
        if edited is None:
            program = whole_program(name, config, cached=cached)
            assert program is not None
            edited = apply_edits(program, edits)
        seen = self.given | self.seen | ({"handed_on": value} if name == "input" else {})
        operands = Operands(self._reference, name, self._layer, seen)
        return run_program(edited, operands, self._reference)

    def _changes(self, name: str) -> list[Mutation]:
        assert isinstance(self._reference, MutatedReference)
        return self._reference.changes_of(name, self._layer)

    def _site(self, name: str, value: Tensor) -> MutationSite:
        none = torch.empty(0)
        a = self._around
        cos, sin, mask = (none, none, none) if a is None else (a.cos, a.sin, a.mask)
        held = None if a is None else a.held
        return MutationSite(
            self._reference, self._layer, name, value, self.seen, cos, sin, mask, held, self.given
        )


def edits_of(changes: Sequence[Mutation]) -> list[Edit]:
    """Return the edits of changes that hold everywhere, in order."""
    return [edit for c in changes if c.scope == EVERYWHERE for edit in c.edits]


Read = Callable[[str], Tensor]


def _reading(change: Mutation, read: Read, stored: Read) -> Read:
    """Put a change on top of earlier ones; what it takes from elsewhere is as stored there."""

    def reader(name: str) -> Tensor:
        assert change.weight is not None
        found = change.weight(name, lambda asked: (read if asked == name else stored)(asked))
        return read(name) if found is None else found

    return reader
