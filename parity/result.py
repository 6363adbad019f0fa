"""What a parity run found, as plain data: the terminal, JSON and HTML reports only print it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from parity.comparison.difference import WorstElement
from parity.comparison.extent import Extent
from parity.comparison.quality import QualityReport
from parity.coverage import count_runs, count_witnesses, in_short

if TYPE_CHECKING:
    from parity.comparison.snapshot import PassSnapshot

# 1.0: first published.
# 1.1: `difference`; of taps `structural`, `noise_from`, `chained` and the mode `probe`.
# 1.2: `coverage.not_run`; `reading`, which `difference` and a divergence's `kind` and `mode` may
# be; the modes `generate` and `tokens`, and the kinds `generation` and `tokens`.
# 1.3: `coverage.runs` and `coverage.witnesses`.
# 1.4: the kind `whole` of a divergence.
# 1.5: the verdict `quality`, and what it is about under that name.
SCHEMA_VERSION = "1.5"

# The modes of a run, in the words of what was not run.
MODE_WORDS = {
    "free": "free",
    "isolated": "isolated",
    "decode": "decode",
    "grad": "gradients",
    "step": "training step",
    "generate": "generation",
    "tokens": "tokenizer",
}

# `quality` is of what was rounded on purpose: how much is lost, and never that all is equal.
Verdict = Literal["equal", "divergent", "inconclusive", "quality"]
# What a divergence is one of. float64 alone tells meaning. A difference that it does not see is
# another computation in a narrower dtype where it is far beyond rounding, else worse rounding than
# honest implementations have. Without a run in float64 nothing was judged but that it differs.
# Before all of these the subject may have read another model than the checkpoint holds.
DifferenceKind = Literal["reading", "meaning", "computation", "rounding", "not judged"]
# Beyond so many times its limit no difference is one of rounding: the limits themselves stand a few
# times above what any honest order of summation costs, and a 16-bit float in place of a 32-bit one
# is 8,000 to 65,000 units of roundoff.
COMPUTATION_LIMITS = 100.0
EXIT_CODES: dict[Verdict, int] = {"equal": 0, "divergent": 1, "inconclusive": 3, "quality": 0}


@dataclass(frozen=True)
class TapResult:
    """One tap of the subject, judged.

    Attributes:
        tap: canonical name.
        lane: dtype of the run: `f64`, `f32`, `bf16`.
        scenario: which inputs.
        mode: `free` (the subject's own values run on), `isolated` (each operator works on the
            reference's values), `decode` (through the cache), `grad` (the backward pass),
            `production` (compiled whole, no taps; forward or backward), `probe` (products of one
            term), `generate` (what is written; `tap` and `scenario` say what of which call) or
            `tokens` (the tokenizer, which has no dtype and counts as float64).
        step: which chunk of a decode run; 0 otherwise.
        dtype: of the array itself.
        error: largest per-token relative error.
        noise: noise floor of the token with the largest rho.
        rho: largest per-token error over its noise floor: the smallest limit that would pass.
        limit: the limit on rho in force.
        peak_rho: as rho, for the largest single element.
        peak_limit: the limit on `peak_rho` in force.
        worst: the element that differs most.
        problems: differences that no tolerance excuses.
        facts: further figures (logits: KL, shift, flips; attention: row sums, total variation).
        extent: which tokens and heads are beyond the limit on rho; None where none is.
        structural: whether one of the problems is none of rounding: a shape, NaN, exact values, who
            carries weight.
        noise_from: what the noise was taken from, see `parity.noise.widen.Floor`.
        chained: isolated, but of several operators: not all between were named.
    """

    tap: str
    lane: str
    scenario: str
    mode: str
    step: int
    dtype: str
    error: float
    noise: float
    rho: float
    limit: float
    peak_rho: float
    peak_limit: float
    worst: WorstElement | None
    problems: tuple[str, ...] = ()
    facts: dict[str, float] = field(default_factory=dict)
    extent: Extent | None = None
    structural: bool = False
    noise_from: str = "measured"
    chained: bool = False

    @property
    def passed(self) -> bool:
        """Whether the tap is equal to within noise."""
        return not self.problems and self.rho <= self.limit and self.peak_rho <= self.peak_limit

    @property
    def misshapen(self) -> bool:
        """Whether it has another shape than the reference's, which it then cannot be given."""
        return any(problem.startswith("shape ") for problem in self.problems)

    @property
    def beyond_rounding(self) -> bool:
        """Whether it differs by more than worse rounding explains."""
        return (
            self.structural
            or not self.rho <= COMPUTATION_LIMITS * self.limit
            or not self.peak_rho <= COMPUTATION_LIMITS * self.peak_limit
        )


@dataclass(frozen=True)
class ReadingDifference:
    """Something that jaxllama takes from a checkpoint otherwise than parity's own reader.

    Attributes:
        what: `config.FIELD`, or the canonical name of a tensor.
        subject: as jaxllama reads it.
        reference: as parity reads it, for the reference and the witnesses.
        where: file and key or stored name that parity read it from.
    """

    what: str
    subject: str
    reference: str
    where: str

    @property
    def said(self) -> str:
        """Say both values and the place."""
        return (
            f"{self.what} is {self.subject} as jaxllama reads it, {self.reference} in {self.where}"
        )


@dataclass(frozen=True)
class Reading:
    """A checkpoint as read by jaxllama and by parity, compared.

    Attributes:
        fields, tensors: how many of the configuration and of the weights were compared.
        differences: of the configuration first, then of the weights in data-flow order.
    """

    fields: int
    tensors: int
    differences: tuple[ReadingDifference, ...] = ()


@dataclass(frozen=True)
class WitnessResult:
    """How one PyTorch implementation compares, over all taps of one lane and scenario.

    Attributes:
        witness: its name.
        lane, scenario, mode: as in `TapResult`.
        is_gold: it is the float64 reference itself: nothing was run twice to compare it.
        compared: how many taps it was compared on.
        absent: tap kinds it declares it cannot show.
        unmatched: taps it neither showed nor declared absent, or showed under no known name.
        worst_tap: where it is farthest from the reference, in units of noise.
        rho: how far that is; above `limit` the witnesses disagree.
        error: the largest relative error against the reference, over all taps.
        subject_gap: the largest relative difference between it and the subject, in the logits up
            to a shift.
    """

    witness: str
    lane: str
    scenario: str
    mode: str
    is_gold: bool
    compared: int
    absent: tuple[str, ...]
    unmatched: tuple[str, ...]
    worst_tap: str
    rho: float
    limit: float
    error: float
    subject_gap: float
    problems: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether it computes what the reference computes."""
        return not self.problems and self.rho <= self.limit


@dataclass(frozen=True)
class Divergence:
    """Where a difference begins.

    `difference` is what it is one of, see `DifferenceKind`.

    `kind` is `operator` (wrong on right inputs), `upstream` (right on right inputs: a setup tap
    such as the angle table or the mask is wrong), `drift` (accumulated rounding), `whole` (what
    users run, compiled whole, alone differs), `setup`, or of a backward pass `loss` (the forward
    pass or the loss itself) and `backward` (all gradients that this one is computed from are
    right), of what is written `generation`, of a tokenizer `tokens`.
    Of a `reading` the row is no tap's: its name is what was read, its mode `reading`.
    """

    row: TapResult
    kind: Literal[
        "operator",
        "upstream",
        "drift",
        "whole",
        "setup",
        "loss",
        "backward",
        "generation",
        "step",
        "tokens",
        "reading",
    ]
    flagged: tuple[str, ...]
    difference: DifferenceKind = "not judged"


@dataclass(frozen=True)
class NamedCause:
    """A cause as reports name it.

    Attributes:
        id: as `parity explain` takes it; empty where none of its pages tells of the difference.
        title: a few words.
        summary: one sentence, with the figures found.
        effective, configured: what the subject does, and what its configuration asks for.
        remedy: what to change.
    """

    id: str
    title: str
    summary: str
    effective: str = ""
    configured: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Experiment:
    """A change made to the reference, and the error at the tap before and after it."""

    changed: str
    tap: str
    before: float
    after: float


@dataclass(frozen=True)
class Suspect:
    """What was proposed and not confirmed, with the error that it leaves at the tap."""

    id: str
    summary: str
    error_left: float


@dataclass(frozen=True)
class CauseReport(NamedCause):
    """Why a subject differs, as far as experiments tell.

    Attributes:
        confirmed: whether the reference, made wrong in this way, agrees with the subject.
        evidence: what was tried and what came of it, in sentences.
        experiments: the same in figures.
        suspects: best first.
        others: further causes that had to be put in beside the first.
        wrong_reference: the reference made wrong in all these ways; no part of documents.
        wrong_inputs: makes a scenario, fed in calls of some sizes, wrong in these ways: of another
            mask, of other positions; gives None where the cause says nothing of it.
    """

    confirmed: bool = False
    evidence: list[str] = field(default_factory=list)
    experiments: list[Experiment] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    others: list[NamedCause] = field(default_factory=list)
    wrong_reference: Any = field(default=None, repr=False, compare=False)
    wrong_inputs: Any = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return what a JSON document has under `cause`."""
        plain = dataclasses.replace(self, wrong_reference=None, wrong_inputs=None)
        document = dataclasses.asdict(plain)
        del document["wrong_reference"], document["wrong_inputs"]
        return document


def verdict_of(
    rows: Iterable[TapResult], witnesses: Sequence[WitnessResult], unmatched: Collection[str]
) -> Verdict:
    """Return the gravest that is certain: `divergent`, then what leaves the verdict open.

    Args:
        rows: the subject's taps, judged.
        witnesses: what was seen of each.
        unmatched: taps that only one side has and has not declared.
    """
    if any(_is_certain(row, witnesses, unmatched) for row in rows if not row.passed):
        return "divergent"
    if unmatched or any(not row.agrees or row.unmatched for row in witnesses):
        return "inconclusive"
    return "equal"


def _is_certain(
    row: TapResult, witnesses: Sequence[WitnessResult], unmatched: Collection[str]
) -> bool:
    """Return whether a failed row shows a divergence whatever else is open.

    What is not shown takes nothing from what is, except that an operator alone may then be several,
    whose rounding adds up. Where a witness contradicts the reference, either may be wrong: then the
    subject must be farther from the reference than twice what the witness is, and so from both
    than they are from each other.
    """
    if unmatched and row.mode == "isolated" and not row.beyond_rounding:
        return False
    contradicted = [
        witness
        for witness in witnesses
        if not witness.agrees and (witness.lane, witness.scenario) == (row.lane, row.scenario)
    ]
    if row.problems and not any(one.problems for one in contradicted):
        return True  # no finite error says more than a wrong shape or a NaN
    return all(not one.problems and row.error > 2 * one.error for one in contradicted)


def modes_not_run(rows: Iterable[TapResult], why: Mapping[str, str]) -> tuple[str, ...]:
    """Return in words the modes that nothing was compared in, and why where that is known."""
    run = {row.mode for row in rows}
    return tuple(
        f"{word} ({why[mode]})" if mode in why else word
        for mode, word in MODE_WORDS.items()
        if mode not in run
    )


@dataclass(repr=False)
class Result:
    """Everything a run found; `verdict` and `first_divergence` first.

    `subject` is the name of what was judged. `not_run` says in words which modes and scenarios were
    left out. `reading` is None of what no file was read for twice: a checkpoint in memory, a
    capture. `snapshots` (one a pass) and `texts` (of each scenario's tokens, by row) are for
    drawings, and stay out of the JSON document. `quality` is of a run that was to measure what
    rounding costs, which judges nothing else.
    """

    rows: list[TapResult]
    witnesses: list[WitnessResult]
    expected: int
    absent: tuple[str, ...]
    unmatched: tuple[str, ...]
    first_divergence: Divergence | None
    inputs: list[dict[str, Any]]
    tolerance: dict[str, Any]
    environment: dict[str, Any]
    checkpoint: dict[str, Any]
    command: str
    subject: str = "subject"
    notes: list[str] = field(default_factory=list)
    cause: CauseReport | None = None
    not_run: tuple[str, ...] = ()
    reading: Reading | None = None
    timing: dict[str, float] = field(default_factory=dict)
    snapshots: list[PassSnapshot] = field(default_factory=list)
    texts: dict[str, list[list[str]]] = field(default_factory=dict)
    quality: QualityReport | None = None

    def __repr__(self) -> str:
        return in_short(self)

    @property
    def disagreeing(self) -> list[WitnessResult]:
        """Witnesses that do not compute what the reference computes."""
        return [row for row in self.witnesses if not row.agrees]

    @property
    def is_open(self) -> bool:
        """Whether something could not be compared or is in dispute, whatever else is certain."""
        return verdict_of([], self.witnesses, self.unmatched) == "inconclusive"

    @property
    def verdict(self) -> Verdict:
        """See `verdict_of`; what was read otherwise than the file has it is a divergence, too."""
        if self.reading is not None and self.reading.differences:
            return "divergent"
        if self.quality is not None:
            return "quality"
        if not self.rows:
            return "inconclusive"  # of nothing
        return verdict_of(self.rows, self.witnesses, self.unmatched)

    @property
    def difference(self) -> DifferenceKind | None:
        """Return what a divergence is one of; None where there is none."""
        return None if self.first_divergence is None else self.first_divergence.difference

    @property
    def shows_meaning(self) -> bool:
        """Whether the model was run in float64; a tokenizer has no dtype."""
        return "f64" in self.lanes

    @property
    def lanes(self) -> list[str]:
        """The dtypes that the model was run in."""
        measured = () if self.quality is None else self.quality.lanes
        run = [row.lane for row in self.rows if row.mode != "tokens"]
        return list(dict.fromkeys([*run, *(one.lane for one in measured)]))

    @property
    def exit_code(self) -> int:
        """Return 0 equal or quality, 1 divergent, 3 inconclusive."""
        return EXIT_CODES[self.verdict]

    @property
    def compared(self) -> int:
        """Return how many different taps of the subject were compared."""
        return len({row.tap for row in self.rows})

    def _repr_html_(self) -> str:
        """Return what a notebook shows: `parity.report` draws, which this module does without."""
        return import_module("parity.report.notebook").result_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the versioned JSON document."""
        first = self.first_divergence
        document = {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict,
            "difference": self.difference,
            "first_divergence": None if first is None else _first(first),
            "cause": None if self.cause is None else self.cause.to_dict(),
            "quality": None if self.quality is None else dataclasses.asdict(self.quality),
            "reading": None if self.reading is None else dataclasses.asdict(self.reading),
            "taps": [{**dataclasses.asdict(row), "passed": row.passed} for row in self.rows],
            "witnesses": [{**dataclasses.asdict(w), "agrees": w.agrees} for w in self.witnesses],
            "coverage": {
                "expected": self.expected,
                "compared": self.compared,
                "absent": list(self.absent),
                "unmatched": list(self.unmatched),
                "not_run": list(self.not_run),
                "runs": count_runs(self.rows),
                "witnesses": count_witnesses(self.witnesses),
            },
            "tolerance": self.tolerance,
            "environment": self.environment,
            "inputs": self.inputs,
            "checkpoint": self.checkpoint,
            "subject": self.subject,
            "command": self.command,
            "notes": self.notes,
            "timing": self.timing,
        }
        return _plain(document)


def _first(first: Divergence) -> dict[str, Any]:
    return {**dataclasses.asdict(first.row), "kind": first.kind, "flagged": list(first.flagged)}


def _plain(value: Any) -> Any:
    """Make a document strict JSON: no NaN or infinity (they become strings), no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
