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
from parity.diagnose.edits.kinds import apply_edits
from parity.diagnose.mutations import CacheWrites, Mutation, MutationSite, change_gradient
from parity.inputs import Inputs
from parity.subjects.base import CheckpointLike, Run
from parity.subjects.torch.arrays import Recorder
from parity.subjects.torch_reference.model import LayerContext, Variant
from parity.subjects.torch_reference.operands import Operands, program_of
from parity.subjects.torch_reference.program import Program, run_program
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

    def with_changes(self, changes: Sequence[Mutation]) -> MutatedReference:
        """Return the same with more changes."""
        return MutatedReference(self.checkpoint, (*self.changes, *changes), dtype=self.dtype)

    def program(self, tap: str, layer: int | None) -> Program | None:
        """Return what computes a tap, edits included; None where it is no program's any more.

        Args:
            tap: short name.
            layer: its number; None outside of layers.
        """
        program = program_of(tap, self.config)
        changes = self.changes_of(tap, layer)
        if program is None or any(change.value is not None for change in changes):
            return None
        edits = [e for change in changes if change.scope == EVERYWHERE for e in change.edits]
        return apply_edits(program, edits)

    def changes_of(self, tap: str, layer: int | None) -> list[Mutation]:
        """Return the changes of a tap, by its short name."""
        return [
            change
            for change in self.changes
            if change.tap == tap and (change.layers is None or layer in change.layers)
        ]

    def start(self, inputs: Any) -> Run:
        return MutatedRun(self, inputs)

    def start_decode(self, inputs: Any, chunks: Sequence[int]) -> Run:
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
        edited = EditedTap(self, None, tap, None)
        edited.given = {"tokens": tokens, "positions": positions, "mask": mask}
        return super().setup(tokens, positions, mask, cache, edited)

    def loss(self, logits: Tensor, inputs: Inputs) -> Tensor:
        changed = [change.loss for change in self.changes if change.loss is not None]
        return (changed[-1] if changed else super().loss)(logits, inputs)

    def layer(self, i: int, x: Tensor, around: LayerContext, tap: Recorder) -> Tensor:
        edited = EditedTap(self, i, tap, around)
        if isinstance(around, EditedCache):
            around = replace(around, tap=edited)
        return super().layer(i, x, around, edited)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, tap: Recorder) -> Tensor:
        assert isinstance(tap, EditedTap)
        tap.seen |= {"keys": k, "values": v}
        return super().attend(q, k, v, mask, tap)

    def head(self, x: Tensor, tap: Recorder) -> Tensor:
        edited = EditedTap(self, None, tap, None)
        edited.seen["output"] = x
        return super().head(x, edited)


class MutatedRun(TorchRun):
    """A pass of a `MutatedReference`."""

    _written: dict[int, tuple[Tensor, Tensor]] | None = None

    def _embed(self, start: int, stop: int, tap: Recorder) -> None:
        super()._embed(start, stop, tap)
        if self._cache is None:
            return
        self._written = {} if self._written is None else self._written
        sizes = tuple(b - a for a, b in self._ranges if b <= stop)
        held = CacheWrites(sizes, self._batch(self._inputs.valid), self._written)
        a = self._around
        self._around = EditedCache(**vars(a), held=held)


@dataclass
class EditedCache(LayerContext):
    """A layer's context whose cache holds what changes make of it."""

    held: CacheWrites
    tap: EditedTap | None = None

    def remember(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values to the layer's cache, change it, and return all that it holds."""
        assert self.cache is not None and self.tap is not None
        written = self.held.written
        past = written.get(layer, (k[:, :0], v[:, :0]))
        written[layer] = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        k, v = super().remember(layer, k, v)
        self.tap.seen |= {"keys": k, "values": v}
        k, v = self.tap.edit("keys", k), self.tap.edit("values", v)
        self.cache[layer] = k, v
        return k, v


class EditedTap(Recorder):
    """Changes values before they are recorded."""

    def __init__(
        self,
        reference: TorchReference,
        layer: int | None,
        tap: Recorder,
        around: LayerContext | None,
    ) -> None:
        self._reference, self._layer, self._tap, self._around = reference, layer, tap, around
        self.seen: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] = {}
        if around is not None:
            self.given = {"positions": around.positions, "rope.inv_freq": around.freq}
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
            if change.value is not None:
                value = change.value(self._site(name, value)).to(value.dtype)
            elif change.edits:
                edits = [*edits, *change.edits] if change.scope == EVERYWHERE else edits
                here = edits if change.scope == EVERYWHERE else [*edits, *change.edits]
                made = self._edited(name, here).to(value.dtype)
                cells = change.scope.cells(name, value)
                value = made if cells is None else torch.where(cells, made, value)
        return value

    def _edited(self, name: str, edits: Sequence[Edit]) -> Tensor:
        """Return what an edited program makes of the taps seen so far."""
        program = program_of(name, self._reference.config)
        assert program is not None
        seen = dict(self.given)
        if self._around is not None:
            a = self._around
            seen |= {"cos": a.cos, "sin": a.sin, "mask": a.mask}
        seen |= self.seen
        operands = Operands(self._reference, name, self._layer, seen)
        return run_program(apply_edits(program, edits), operands, self._reference)

    def _changes(self, name: str) -> list[Mutation]:
        assert isinstance(self._reference, MutatedReference)
        return self._reference.changes_of(name, self._layer)

    def _site(self, name: str, value: Tensor) -> MutationSite:
        none = torch.empty(0)
        a = self._around
        cos, sin, mask = (none, none, none) if a is None else (a.cos, a.sin, a.mask)
        held = a.held if isinstance(a, EditedCache) else None
        return MutationSite(
            self._reference, self._layer, name, value, self.seen, cos, sin, mask, held
        )


Read = Callable[[str], Tensor]


def _reading(change: Mutation, read: Read, stored: Read) -> Read:
    """Put a change on top of earlier ones; what it takes from elsewhere is as stored there."""

    def reader(name: str) -> Tensor:
        assert change.weight is not None
        found = change.weight(name, lambda asked: (read if asked == name else stored)(asked))
        return read(name) if found is None else found

    return reader
