"""Judging one faulty subject after another against the same reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import cast

import jax

from jaxllama.attention import Backend
from jaxllama.checkpoint import Checkpoint
from parity.inputs import Inputs, decode_chunks
from parity.locate import first_divergence
from parity.lockstep.engine import run_lockstep
from parity.lockstep.participants import Participant
from parity.lockstep.rerun import run_until_sure
from parity.lockstep.setup import (
    WHOLE,
    Variants,
    further_variants,
    other_participants,
    own_variants,
    subject_participants,
    summed_taps,
)
from parity.noise import one_hot
from parity.noise.operators import SummedTaps
from parity.result import CauseReport, Divergence, verdict_of
from parity.scenarios import scenario
from parity.selftest.cached_reference import CachedReference
from parity.selftest.calibration import Figure, figures
from parity.selftest.fault import Fault, FaultySubject, faulty_model
from parity.selftest.machines.subject import ImitatedMachine, Machine
from parity.selftest.models import checkpoint
from parity.subjects.base import CachedSubject, Subject
from parity.subjects.jaxllama.subject import JaxLlama
from parity.subjects.torch_reference.model import Variant
from parity.subjects.torch_reference.subject import TorchReference

# Prime and short: float64 shows a fault on the first tokens that it touches.
LENGTH = 23
# Kept at a time; what is recorded of a harness's references takes up to 200 MB.
MOST_HARNESSES = 2
# The id that is said over and over: an "e" where ids are bytes.
REPEATED = 101


@dataclass(frozen=True)
class Outcome:
    """What the checker said of one subject.

    Attributes:
        verdict: `equal`, `divergent` or `inconclusive`.
        first: where it says the difference begins.
        cause: what it says is wrong.
        unexplained: the exception that ended the search for a cause, if one did.
        figures: how near the run came to each limit.
    """

    verdict: str
    first: Divergence | None
    cause: CauseReport | None = None
    unexplained: str = ""
    figures: tuple[Figure, ...] = ()


class Harness:
    """One checkpoint at one dtype: the references run once, then any number of subjects.

    Args:
        model: see `parity.selftest.models`.
        lane: `f64`, `f32` or `bf16`.
    """

    def __init__(self, model: str, lane: str) -> None:
        self.checkpoint: Checkpoint = checkpoint(model)
        self.lane = lane
        self._inputs: dict[str, Inputs] = {}
        self._asked: dict[frozenset[str], list[Participant]] = {}
        self._cached: dict[tuple[str, str, frozenset[str] | None], CachedReference] = {}

    @cached_property
    def _model(self) -> TorchReference:
        return TorchReference(self.checkpoint, dtype="f64")

    @cached_property
    def _reference(self) -> CachedReference:
        return CachedReference(self._model)

    @cached_property
    def _own(self) -> Variants:
        return own_variants(self.checkpoint)

    @cached_property
    def _summed(self) -> SummedTaps:
        return summed_taps(self._model)

    def _beside(self, absent: frozenset[str]) -> list[Participant]:
        """Return everybody that `parity run` would ask beside a subject; they remember answers.

        Isolated runs are forced to what the subject shows: those beside another are other runs.

        Args:
            absent: kinds of taps that the subject does not show.
        """
        if absent not in self._asked:
            beside = other_participants(
                self.checkpoint,
                self._reference,
                self.lane,
                absent,
                ("torch",),
                ("free",),
                self._own,
            )
            self._asked[absent] = [
                participant for one in beside for participant in self._remembered(one, absent)
            ]
        return self._asked[absent]

    def _remembered(self, one: Participant, absent: frozenset[str]) -> Iterator[Participant]:
        if one.subject is self._reference:
            yield one
            return
        for modes, forced in ((WHOLE, None), (("isolated",), absent)):
            key = one.subject.name, one.subject.dtype, forced
            cached = self._cached.setdefault(key, CachedReference(cast(CachedSubject, one.subject)))
            if taken := tuple(mode for mode in one.modes if mode in modes):
                yield Participant(cached, one.roles, taken)

    def inputs(self, name: str) -> Inputs:
        """Return a scenario's inputs, built once.

        Args:
            name: the scenario's; `causal@61` is of 61 tokens, `repeated@503` one token 503 times,
                `vocabulary` has every id once.
        """
        if name not in self._inputs:
            kind, _, stated = name.partition("@")
            length = int(stated) if stated else LENGTH
            config = self.checkpoint.config
            prompts = {"repeated": [REPEATED] * length, "vocabulary": range(config.vocab_size)}
            prompt = prompts.get(kind)
            made = scenario(
                "causal" if prompt else kind,
                self.checkpoint.tokenizer().encode,
                config,
                length=None if kind == "vocabulary" else length,
                prompt=prompt,
            )
            self._inputs[name] = dataclasses.replace(made, name=name)
        return self._inputs[name]

    def check(self, subject: Subject, name: str, mode: str) -> Outcome:
        """Compare a subject with the reference as `parity run` does.

        Args:
            subject: clean or faulty.
            name: the scenario.
            mode: `free` (and isolated beside it), `decode` or `grad`.
        """
        inputs = self.inputs(name)
        modes = ("free", "isolated") if mode == "free" else (mode,)
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            record = run_until_sure(
                partial(
                    run_lockstep,
                    parts=[inputs],
                    reference=self._reference,
                    modes=modes,
                    layers=self.checkpoint.config.num_hidden_layers,
                    chunks=decode_chunks(inputs) if mode == "decode" else None,
                    summed=self._summed,
                ),
                {self.lane: [*subject_participants(subject), *self._beside(subject.absent)]},
                partial(further_variants, self.checkpoint),
            )
            if one_hot.probes_products(modes, [self.lane]) and not any(
                r.misshapen for r in record.rows
            ):
                c = self.checkpoint.config
                record.rows += one_hot.probe_products(subject, inputs, self._summed, c)
        first = first_divergence(record.rows)
        verdict = verdict_of(record.rows, record.witnesses, record.unmatched)
        return Outcome(verdict, first, figures=figures(record.rows))

    def check_fault(self, fault: Fault) -> Outcome:
        """Judge the subject that has a fault, on the inputs that show it."""
        return self.check(self._subject(fault), fault.scenario, fault.mode)

    def cause(self, fault: Fault, first: Divergence) -> CauseReport | None:
        """Return what `parity run` would say is wrong, in the form of `parity.result.Result`."""
        from parity.diagnose.search import find_cause

        inputs, subject = self.inputs(fault.scenario), self._subject(fault)
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            return find_cause(
                first, [first.row], [inputs], self.checkpoint, lambda lane: subject, decode_chunks
            )

    def check_clean(self, scenario: str, mode: str) -> Outcome:
        """Judge the subject without a fault, on the same code path."""
        return self.check(self._subject(None), scenario, mode)

    def check_compiled(self, scenario: str, mode: str, backend: Backend) -> Outcome:
        """Judge the model as users run it, compiled, on an attention backend."""
        with jax.enable_x64(True):
            model = faulty_model(self.checkpoint, None)
            subject = JaxLlama(model, self.lane, backend=backend)
        return self.check(subject, scenario, mode)

    def check_variant(self, scenario: str, mode: str, variant: Variant) -> Outcome:
        """Judge an honest variant of the reference, as if it were the subject."""
        subject = TorchReference(self.checkpoint, dtype=self.lane, variant=variant)
        return self.check(subject, scenario, mode)

    def check_imitated(self, machine: Machine, scenario: str, mode: str) -> Outcome:
        """Judge the reference as another machine would run it.

        The verdict is `no effect` if no operator gave other bits than here.
        """
        subject = ImitatedMachine(self.checkpoint, self.lane, machine)
        judged = self.check(subject, scenario, mode)
        return judged if subject.changed else dataclasses.replace(judged, verdict="no effect")

    def _subject(self, fault: Fault | None) -> FaultySubject:
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            return FaultySubject(self.checkpoint, self.lane, fault)


class Harnesses:
    """The harnesses in use, made when first asked for; with each go all its references' arrays."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], Harness] = {}

    def harness(self, model: str, lane: str) -> Harness:
        """Return the harness of a checkpoint at a dtype; the one that was made first makes room."""
        if (model, lane) not in self._made:
            if len(self._made) == MOST_HARNESSES:
                del self._made[next(iter(self._made))]
            self._made[model, lane] = Harness(model, lane)
        return self._made[model, lane]

    def of(self, fault: Fault) -> Harness:
        """Return the harness on which a fault shows."""
        return self.harness(fault.model, fault.lane)


@cache
def harnesses() -> Harnesses:
    """Return this process's harnesses."""
    return Harnesses()
