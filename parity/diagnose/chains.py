"""A difference behind taps that a subject does not show: explanations are tried on the whole chain.

Between the last tap that agrees and the one that does not, several operators run. What they read is
not known of the subject, so that no edit can be tried on one of them alone: the reference, wrong in
that way, is run to the tap that is shown.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from jaxllama.config import LlamaConfig
from parity.diagnose.cause import LAST, CauseFile, Hypothesis, catalogue
from parity.diagnose.compare_recording import name_short
from parity.diagnose.edits.edit import EVERYWHERE, SOLVED, Edit, Explanation
from parity.diagnose.edits.hypotheses import EXACT, hypotheses_of
from parity.diagnose.edits.kinds import kinds, proposals
from parity.diagnose.edits.named import instances
from parity.diagnose.edits.numbers import solve_numbers
from parity.diagnose.edits.trial import UNFIT, compared_cells
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.recording import Recording, first_columns, record
from parity.inputs import Inputs
from parity.subjects.base import Arrays
from parity.subjects.torch.arrays import to_torch
from parity.taps import OPERANDS, flow_key, split_name, stage_of

# Columns that trials look at.
MOST_COLUMNS = 24
# Explanations that are handed on, and those to which a second is looked for.
MOST = 8
MOST_FIRST = 6
# How much longer others are looked for once one explains all, as a share of the time it took.
MORE = 0.25
USUAL_ONES, NO_NUMBERS, ANY_NUMBER = "usual", "none", "any"
EDITED = "operator-edited"
# Causes that are other values in a configuration.
OF_CONFIG = ("rope-theta", "rope-scaling", "norm-eps", "score-scale")
# Numbers that other models and libraries have, where a search for one may begin too.
USUAL = {
    "theta": (1e4, 1e5, 5e5, 1e6),
    "eps": (0.0, 1e-6, 1e-5, 1e-8, 1e-12),
    "factor": (2.0, 4.0, 8.0, 16.0, 32.0),
    "context": (2048.0, 4096.0, 8192.0),
}


def usual_numbers(name: str, config: LlamaConfig) -> tuple[float, ...]:
    """Return the numbers that others have for a constant, some of them made of a config's own."""
    c = config
    if name == "scale":
        roots = (c.hidden_size, c.num_attention_heads, c.num_key_value_heads)
        return (1.0, 1 / c.head_dim, *(float(number) ** -0.5 for number in roots))
    return USUAL.get(name, ())


def hidden_taps(tap: str, shown: frozenset[str], layers: int) -> list[str]:
    """Return the taps that one is computed of and that are not shown, in the order of data flow.

    Args:
        tap: its canonical name.
        shown: names of those that are.
        layers: L.
    """
    found: set[str] = set()
    waiting = [tap]
    while waiting:
        for name in _operands(waiting.pop(), layers):
            if name not in shown and name not in found:
                found.add(name)
                waiting.append(name)
    return sorted(found, key=lambda name: (stage_of(name, layers), flow_key(name)))


def _operands(tap: str, layers: int) -> Iterator[str]:
    """Yield what a tap is computed of, but for what a call sets up."""
    kind, layer = split_name(tap)
    for operand in OPERANDS.get(kind, ()):
        short = operand.removeprefix("layers.")
        if kind == "layers.input":
            yield f"layers.{layer - 1}.output" if layer else "embed"
        elif kind == "norm":
            yield f"layers.{layers - 1}.output"
        elif operand.startswith("layers."):
            yield f"layers.{layer}.{short}"
        elif operand in OPERANDS:
            yield operand


@dataclass(frozen=True)
class Chain:
    """All that may lie between what a subject shows and where it differs.

    Attributes:
        recording: of the subject, on few columns.
        inputs: its scenario, as it is understood so far.
        tap: where it differs.
        hidden: what that is computed of and is not shown, see `hidden_taps`.
        evidence: of the tap.
        deadline: of this thread's processor; nothing is tried after it.
    """

    recording: Recording
    inputs: Inputs
    tap: str
    hidden: tuple[str, ...]
    evidence: Evidence
    deadline: float = float("inf")

    @property
    def reference(self) -> MutatedReference:
        """The reference as it is understood so far."""
        return self.evidence.reference

    @cached_property
    def stage(self) -> int:
        """The number of the tap's stage, in the first call that shows it."""
        per_call = self.recording.layers + 2
        place = stage_of(self.tap, self.recording.layers)
        return (len(self.evidence.sizes) - 1) * per_call + place

    @cached_property
    def target(self) -> Tensor:
        """What the subject shows."""
        return to_torch(np.asarray(self.recording.stages[self.stage][self.tap], np.float64))

    @cached_property
    def counted(self) -> Tensor:
        """Which cells of it count, broadcastable to it."""
        return compared_cells(self.evidence_at(self.tap), self.target)

    def value(self, reference: MutatedReference) -> Tensor:
        """Return what a reference makes of the tap."""
        return to_torch(np.asarray(self._stages(reference)[-1][self.tap], np.float64))

    @cached_property
    def truth(self) -> list[Arrays]:
        """The stages of the reference as it is understood so far, up to the tap's."""
        return self._stages(self.reference)

    def _stages(self, reference: MutatedReference) -> list[Arrays]:
        run = self.recording.begin(reference, self.inputs)
        return [run.step() for _ in range(self.stage + 1)]

    def residual(self, reference: MutatedReference) -> Tensor | None:
        """Return what a reference leaves of the tap, in units of it; None if that is no number,
        or there is no time for it.
        """
        if time.thread_time() > self.deadline:
            return None
        try:
            made = self.value(reference)
        except UNFIT:
            return None
        if made.shape != self.target.shape:
            return None
        size = torch.where(self.counted, self.target, 0.0).norm().clamp_min(1e-300)
        found = torch.where(self.counted, made - self.target, 0.0) / size
        return found.flatten() if bool(found.isfinite().all()) else None

    def left(self, reference: MutatedReference) -> float:
        """Return the norm of `residual`; 1e300 if that is no number."""
        found = self.residual(reference)
        return 1e300 if found is None else float(found.norm())

    def evidence_at(self, tap: str) -> Evidence:
        """Return the evidence of a hidden tap as if the subject had made what the reference has."""
        layers = self.recording.layers
        place = self.stage - stage_of(self.tap, layers) + stage_of(tap, layers)
        taps = name_short(self.truth[place])
        if tap in ("norm", "logits"):
            taps = name_short(self.truth[place - 1]) | taps
        start = self.evidence.columns.start
        columns = slice(start, min(self.evidence.columns.stop, self.inputs.tokens.shape[1]))
        inputs, chunks = self.inputs, self.recording.chunks
        return replace(
            self.evidence,
            tap=tap,
            subject=taps,
            truth=taps,
            columns=columns,
            inputs=inputs,
            chunks=chunks,
            elsewhere=(),
        )


def chain_of(recording: Recording, evidence: Evidence) -> Chain | None:
    """Return the chain that ends at a tap where a subject differs; None if all of it is shown."""
    shown = frozenset(name for stage in recording.stages for name in stage)
    hidden = tuple(hidden_taps(evidence.tap, shown, recording.layers))
    if evidence.backward or evidence.tap.startswith("cache.") or not hidden:
        return None
    whole = Chain(recording, evidence.inputs, evidence.tap, hidden, evidence)
    columns = recording.inputs.tokens.shape[1]
    if recording.mode != "free" or columns <= MOST_COLUMNS:
        return whole
    cut = first_columns(recording.inputs, MOST_COLUMNS)
    try:
        few = record(recording.subject, cut, None, recording.layers)
    except Exception:  # it need not take what the run did not ask of it
        return whole
    inputs = first_columns(evidence.inputs, MOST_COLUMNS)
    chain = replace(whole, recording=few, inputs=inputs)
    return chain if chain.left(evidence.reference) > evidence.enough else whole


def chain_hypotheses(
    chain: Chain, seconds: float, *, rounding: bool = False
) -> list[tuple[Hypothesis, float]]:
    """Return what explains the end of a chain, with what each leaves there, best first.

    Args:
        chain: the chain.
        seconds: of this thread's processor; nothing new is tried after this time.
        rounding: whether only causes of one dtype's arithmetic can explain it.
    """
    before = chain.left(chain.reference)
    deadline = time.thread_time() + seconds
    chain = replace(chain, deadline=deadline)
    enough = max(EXACT, chain.evidence.enough)
    found: list[tuple[Hypothesis, float]] = []
    files = _files(rounding)
    config = [file for file in files if file.cause.id in OF_CONFIG]
    for candidates in (
        _named(chain, enough, config, USUAL_ONES),
        _named(chain, enough, files, NO_NUMBERS),
        _guessed(chain, files),
        # A pair is one where neither does alone.
        _named(chain, enough, config, ANY_NUMBER),
        _pairs(chain, enough, config),
        _named(chain, enough, files, ANY_NUMBER),
        _edits(chain, enough, files),
    ):
        found += _tried(chain, enough, deadline, candidates)
        if any(left <= enough for _, left in found):
            break
    found = [(h, left) for h, left in found if left < before]
    found.sort(key=lambda item: round(max(float(np.log10(max(item[1], 1e-300))), -12.0), 1))
    return found[:MOST]


def _tried(
    chain: Chain, enough: float, deadline: float, candidates: Iterator[Hypothesis]
) -> list[tuple[Hypothesis, float]]:
    """Return the candidates with what they leave at the end of a chain."""
    begun, found = time.thread_time(), list[tuple[Hypothesis, float]]()
    for hypothesis in candidates:
        left = chain.left(chain.reference.with_changes(hypothesis.changes))
        now = time.thread_time()
        if left <= enough and not any(one <= enough for _, one in found):
            # Some others may do as well: they are looked for a little longer.
            deadline = min(deadline, now + MORE * (now - begun))
        found.append((replace(hypothesis, left=left), left))
        if now > deadline:
            break
    return found


def _both(one: Hypothesis, other: Hypothesis) -> Hypothesis:
    """Return two hypotheses as one, each with its name."""
    parts = [replace(p, changes=()) for h in (one, other) for p in h.parts or (h,)]
    said, changes = f"{one.said} and {other.said}", (*one.changes, *other.changes)
    return replace(other, said=said, changes=changes, parts=tuple(parts))


Files = Sequence[CauseFile]


def _files(rounding: bool) -> Files:
    return [file for file in catalogue().values() if file.cause.rounding or not rounding]


def _kinds(chain: Chain) -> list[Evidence]:
    """Return the evidence of one tap of each kind: the first that is hidden, and the last."""
    found: dict[str, Evidence] = {}
    for tap in (*chain.hidden, chain.tap):
        kind = split_name(tap)[0]
        if kind not in found:
            found[kind] = chain.evidence_at(tap)
    return list(found.values())


def _named(chain: Chain, enough: float, files: Files, numbers: str) -> Iterator[Hypothesis]:
    """Yield edits that have names, of every kind of hidden tap.

    Args:
        chain: the chain.
        enough: what may be left of it.
        files: the causes whose edits they are.
        numbers: which are tried, one of `USUAL_ONES`, `NO_NUMBERS` and `ANY_NUMBER`.
    """
    for evidence in _kinds(chain):
        for file in files:
            for one in file.edits if evidence.short in file.cause.taps else ():
                if evidence.trial is None or one.scoped:
                    continue
                for unsolved in instances(evidence.trial, one.edits):
                    free = any(edit.value == SOLVED for edit in unsolved)
                    if free != (numbers != NO_NUMBERS):
                        continue
                    usual = numbers == USUAL_ONES
                    for edits in _solved(chain, evidence, unsolved, enough, usual=usual):
                        found = Explanation(edits, EVERYWHERE, 0.0)
                        yield from hypotheses_of(evidence, file.cause.id, found, one)


def _pairs(chain: Chain, enough: float, files: Files) -> Iterator[Hypothesis]:
    """Yield pairs of edits that have names."""
    singles = [
        (chain.left(chain.reference.with_changes(one.changes)), one)
        for numbers in (USUAL_ONES, NO_NUMBERS)
        for one in _named(chain, enough, files, numbers)
    ]
    for _, first in sorted(singles, key=lambda item: item[0])[:MOST_FIRST]:
        reference = chain.reference.with_changes(first.changes)
        there = replace(chain, evidence=replace(chain.evidence, reference=reference))
        for numbers in (USUAL_ONES, NO_NUMBERS, ANY_NUMBER):
            for second in _named(there, enough, files, numbers):
                yield _both(first, second)


def _guessed(chain: Chain, files: Files) -> Iterator[Hypothesis]:
    """Yield what causes guess without reading it off taps, which are not to be had here."""
    for tap in (*chain.hidden, chain.tap):
        evidence = chain.evidence_at(tap)
        for file in files:
            if file.look is None or file.cause.rank >= LAST:
                continue
            if evidence.short in file.cause.taps:
                try:
                    yield from (one for one in file.look(evidence) if one.changes)
                except UNFIT:
                    continue


def _edits(chain: Chain, enough: float, files: Files) -> Iterator[Hypothesis]:
    """Yield any edit of every kind of hidden tap."""
    if not any(file.cause.id == EDITED for file in files):
        return
    for evidence in _kinds(chain):
        trial = evidence.trial
        if trial is None:
            continue
        for edit in proposals(tuple(kinds()), trial, trial.program, trial.values(trial.program)):
            for edits in _solved(chain, evidence, (edit,), enough):
                yield from hypotheses_of(evidence, EDITED, Explanation(edits, EVERYWHERE, 0.0))


def _solved(
    chain: Chain, evidence: Evidence, edits: tuple[Edit, ...], enough: float, *, usual: bool = False
) -> Iterator[tuple[Edit, ...]]:
    """Yield edits with their number solved for on the whole chain: of all like taps at once.

    Args:
        chain: the chain.
        evidence: of the tap that they are edits of.
        edits: with a number to be solved for, or without.
        enough: what may be left of the chain.
        usual: whether usual numbers alone are tried.
    """
    free = [i for i, edit in enumerate(edits) if edit.value == SOLVED]
    if not free:
        yield edits
        return
    (at,) = free[:1]

    def filled(number: float) -> tuple[Edit, ...]:
        edit = edits[at]
        said = edit.template.format(f"{number:.6g}")
        return (*edits[:at], replace(edit, value=number, said=said), *edits[at + 1 :])

    def residual(numbers: Sequence[float]) -> Tensor | None:
        found = Explanation(filled(numbers[0]), EVERYWHERE, 0.0)
        try:
            first = next(iter(hypotheses_of(evidence, "", found)))
        except UNFIT:
            return None
        return chain.residual(chain.reference.with_changes(first.changes))

    common = usual_numbers(edits[at].step, chain.reference.config)
    if usual:
        yield from (filled(n) for n in common if not edits[at].changes_nothing(n))
        return
    starts = (*edits[at].starts, *common)
    numbers = solve_numbers(residual, [starts], enough)
    if numbers is not None and not edits[at].changes_nothing(numbers[0]):
        yield filled(numbers[0])
