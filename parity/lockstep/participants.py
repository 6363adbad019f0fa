"""Who takes part in a comparison, and in which pieces the inputs reach them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from parity.inputs import Inputs
from parity.subjects.base import Run, Subject
from parity.taps import CACHE_TAPS, GRAD_TAPS, split_name


class Role(StrEnum):
    """What a participant is there for.

    Attributes:
        SUBJECT: is judged.
        PRODUCTION: is judged: the same model without taps.
        WITNESS: must agree with the reference.
        REFERENCE: is the reference itself, to be named beside the other witnesses.
        NOISE: is an honest run at the dtype under judgement, whose error is the noise.
        NOISE_F32: is one in float32: the noise of what computes in float32 whatever it is given,
            and, scaled, of float64.
    """

    SUBJECT = "subject"
    PRODUCTION = "production"
    WITNESS = "witness"
    REFERENCE = "reference"
    NOISE = "noise"
    NOISE_F32 = "noise_f32"


@dataclass(frozen=True)
class Participant:
    """One implementation and what it is there for.

    Attributes:
        subject: the implementation.
        roles: what for.
        modes: of `free`, `isolated`, `decode` and `grad`, those it runs in.
    """

    subject: Subject
    roles: frozenset[Role]
    modes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ActiveRun:
    """A participant on its way through a pass in one mode."""

    subject: Subject
    roles: frozenset[Role]
    mode: str
    run: Run

    @property
    def is_subject(self) -> bool:
        """Whether it is what the verdict is about."""
        return bool(self.roles & {Role.SUBJECT, Role.PRODUCTION})

    @property
    def is_reference(self) -> bool:
        """Whether it is the reference itself, present to be named beside the other witnesses."""
        return Role.REFERENCE in self.roles

    @property
    def is_witness(self) -> bool:
        """Whether this is a witness's own run, not one on the reference's inputs."""
        return Role.WITNESS in self.roles and self.mode != "isolated"

    @property
    def absent(self) -> tuple[str, ...]:
        """The tap kinds it cannot show of those that its mode is about."""
        backward = self.mode == "grad"
        return tuple(sorted(k for k in self.subject.absent if (k in GRAD_TAPS) is backward))


@dataclass(frozen=True)
class Chunk:
    """The columns of one call: all of them, or one piece of a decode run.

    Attributes:
        step: its number.
        valid: its columns' validity [B, t].
        mask: what its queries see of the C columns fed so far [B, t, C].
        held: validity of those columns [B, C].
    """

    step: int
    valid: np.ndarray
    mask: np.ndarray
    held: np.ndarray

    def rows_of(self, name: str) -> np.ndarray:
        """Return which of a tap's rows are real tokens: a cache also holds earlier chunks'."""
        return self.held if split_name(name)[0] in CACHE_TAPS else self.valid

    def start_of(self, name: str) -> int:
        """Return which of the pass's columns a tap's first one is."""
        return self.held.shape[1] - self.rows_of(name).shape[1]


def chunk_views(inputs: Inputs, chunks: Sequence[int] | None) -> Iterator[Chunk]:
    """Yield the calls of a run; without `chunks` there is one, over all columns."""
    stop = 0
    for step, size in enumerate(chunks or [inputs.tokens.shape[1]]):
        start, stop = stop, stop + size
        mask = inputs.mask[:, start:stop, :stop]
        yield Chunk(step, inputs.valid[:, start:stop], mask, inputs.valid[:, :stop])
