"""Judging one faulty subject after another against the same reference."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, cast

import jax

from jaxllama.attention import Backend
from jaxllama.checkpoint import Checkpoint
from parity.inputs import Inputs, decode_chunks
from parity.locate import first_divergence
from parity.lockstep.engine import run_lockstep
from parity.lockstep.participants import Participant
from parity.lockstep.rerun import run_until_sure
from parity.lockstep.setup import EVERY, WHOLE, further_variants, participants_for, summed_taps
from parity.noise import one_hot
from parity.noise.operators import SummedTaps
from parity.result import Divergence
from parity.scenarios import scenario
from parity.selftest.fault import Fault, FaultySubject, faulty_model
from parity.selftest.figures import Figure, figures
from parity.selftest.machines.subject import ImitatedMachine, Machine
from parity.selftest.memo import Memo
from parity.selftest.models import checkpoint
from parity.subjects.base import CachedSubject, Subject
from parity.subjects.jaxllama import JaxLlama
from parity.subjects.torch_reference import TorchReference, Variant

# Prime and short: float64 shows a fault on the first tokens that it touches.
LENGTH = 23
# Kept at a time; what is recorded of a bench's references takes up to 200 MB.
MOST_BENCHES = 2
# The id that is said over and over: an "e" where ids are bytes.
REPEATED = 101


@dataclass(frozen=True)
class Judgement:
    """What the checker said of one subject.

    Attributes:
        verdict: `equal`, `divergent` or `inconclusive`.
        first: where it says the difference begins.
        cause: what it says is wrong, see `parity.result.Result`.
        figures: how near the run came to each limit.
    """

    verdict: str
    first: Divergence | None
    cause: dict[str, Any] | None = None
    figures: tuple[Figure, ...] = ()


class Bench:
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
        self._memos: dict[tuple[str, str, frozenset[str] | None], Memo] = {}

    @cached_property
    def _model(self) -> TorchReference:
        return TorchReference(self.checkpoint, dtype="f64")

    @cached_property
    def _reference(self) -> Memo:
        return Memo(self._model)

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
            subject = copy.copy(self._reference)
            subject.absent = absent
            asked = participants_for(
                self.checkpoint, self._reference, {self.lane: subject}, ("torch",), ("free",)
            )
            self._asked[absent] = [
                participant
                for one in asked[self.lane][1:]
                for participant in self._remembered(one, absent)
            ]
        return self._asked[absent]

    def _remembered(self, one: Participant, absent: frozenset[str]) -> Iterator[Participant]:
        if one.subject is self._reference:
            yield one
            return
        for modes, forced in ((WHOLE, None), (("isolated",), absent)):
            key = one.subject.name, one.subject.dtype, forced
            memo = self._memos.setdefault(key, Memo(cast(CachedSubject, one.subject)))
            if taken := tuple(mode for mode in one.modes if mode in modes):
                yield Participant(memo, one.roles, taken)

    def inputs(self, name: str) -> Inputs:
        """Return a scenario's inputs, built once.

        Args:
            name: the scenario's; `causal@61` is of 61 tokens, `repeated@503` one token 503 times.
        """
        if name not in self._inputs:
            kind, _, stated = name.partition("@")
            length = int(stated) if stated else LENGTH
            repeated = [REPEATED] * length if kind == "repeated" else None
            made = scenario(
                "causal" if repeated else kind,
                self.checkpoint.tokenizer().encode,
                self.checkpoint.config,
                length=length,
                prompt=repeated,
            )
            self._inputs[name] = dataclasses.replace(made, name=name)
        return self._inputs[name]

    def judge(self, subject: Subject, name: str, mode: str) -> Judgement:
        """Compare a subject with the reference as `parity run` does.

        Args:
            subject: clean or faulty.
            name: the scenario.
            mode: `free` (and isolated beside it), `decode` or `grad`.
        """
        inputs = self.inputs(name)
        participants = [Participant(subject, frozenset({"subject"}), EVERY)]
        if isinstance(subject, JaxLlama):
            whole = Participant(subject.production(), frozenset({"production"}), ("free", "grad"))
            participants.append(whole)
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
                {self.lane: [*participants, *self._beside(subject.absent)]},
                partial(further_variants, self.checkpoint),
            )
            if one_hot.asked(modes, [self.lane]) and not any(r.misshapen for r in record.rows):
                c = self.checkpoint.config
                record.rows += one_hot.probe_products(subject, inputs, self._summed, c)
        first = first_divergence(record.rows)
        disagree = record.unmatched or any(not w.agrees or w.unmatched for w in record.witnesses)
        verdict = "inconclusive" if disagree else "divergent" if first else "equal"
        return Judgement(verdict, first, figures=figures(record.rows))

    def inject(self, fault: Fault) -> Judgement:
        """Comparator the subject that has a fault, on the inputs that show it."""
        return self.judge(self._subject(fault), fault.scenario, fault.mode)

    def cause(self, fault: Fault, first: Divergence) -> dict[str, Any] | None:
        """Return what `parity run` would say is wrong, in the form of `parity.result.Result`."""
        from parity.diagnose import cause_of

        inputs, subject = self.inputs(fault.scenario), self._subject(fault)
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            return cause_of(
                first, [first.row], [inputs], self.checkpoint, lambda lane: subject, decode_chunks
            )

    def clean(self, scenario: str, mode: str) -> Judgement:
        """Comparator the subject without a fault, on the same code path."""
        return self.judge(self._subject(None), scenario, mode)

    def compiled(self, scenario: str, mode: str, backend: Backend) -> Judgement:
        """Comparator the model as users run it, compiled, on an attention backend."""
        with jax.enable_x64(True):
            model = faulty_model(self.checkpoint, None)
            subject = JaxLlama(model, self.lane, backend=backend)
        return self.judge(subject, scenario, mode)

    def witness(self, scenario: str, mode: str, variant: Variant) -> Judgement:
        """Comparator an honest variant of the reference, as if it were the subject."""
        subject = TorchReference(self.checkpoint, dtype=self.lane, variant=variant)
        return self.judge(subject, scenario, mode)

    def imitated(self, machine: Machine, scenario: str, mode: str) -> Judgement:
        """Comparator the reference as another machine would run it.

        The verdict is `no effect` if no operator gave other bits than here.
        """
        subject = ImitatedMachine(self.checkpoint, self.lane, machine)
        judged = self.judge(subject, scenario, mode)
        return judged if subject.changed else dataclasses.replace(judged, verdict="no effect")

    def _subject(self, fault: Fault | None) -> FaultySubject:
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            return FaultySubject(self.checkpoint, self.lane, fault)


class Benches:
    """The benches in use, made when first asked for; with each go all its references' arrays."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], Bench] = {}

    def bench(self, model: str, lane: str) -> Bench:
        """Return the bench of a checkpoint at a dtype; the one that was made first makes room."""
        if (model, lane) not in self._made:
            if len(self._made) == MOST_BENCHES:
                del self._made[next(iter(self._made))]
            self._made[model, lane] = Bench(model, lane)
        return self._made[model, lane]

    def of(self, fault: Fault) -> Bench:
        """Return the bench on which a fault shows."""
        return self.bench(fault.model, fault.lane)


@cache
def benches() -> Benches:
    """Return this process's benches."""
    return Benches()
