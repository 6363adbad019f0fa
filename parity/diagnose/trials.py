"""Hypotheses of one tap, tried: on its operator, then on the whole reference.

The cheapest trial comes first: what does not explain the operator at hand is not tried in full.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.diagnose.cause import LAST, Hypothesis, catalogue
from parity.diagnose.chains import chain_hypotheses, chain_of
from parity.diagnose.compare_recording import RecordingComparison, compare_recording
from parity.diagnose.elsewhere import Elsewhere
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.operator_trial import remaining_error
from parity.diagnose.recording import Recording
from parity.inputs import Inputs
from parity.taps import SETUP_TAPS, split_name

# Hypotheses of one tap that are tried in full.
MOST_TRIALS = 12
# Explanations of a chain that are held against all that the best was.
MOST_ALIKE = 4
# For what explains a chain, to be tried in full.
SECONDS_FOR_CHAINS = 10.0
# Edits are looked for no longer than this where something explains the run's own scenarios.
SECONDS_FOR_BETTER = 6.0
# What a cause raises that needs a tap which this subject does not show, or of another shape.
UNFIT = (LookupError, ValueError, RuntimeError)
# An operator's hypothesis must take this much of the difference away to be tried in full.
WORTH_TRYING = 0.1


@dataclass(frozen=True)
class Trial:
    """A hypothesis put into the whole reference.

    Attributes:
        hypothesis: what was tried.
        left: the tap's error on the subject's own inputs; 0 where only a whole run shows it.
        reference, inputs: wrong in that way, too.
        after: how far the subject agrees with them.
        fails_in: where else it does not explain the subject, in words; empty if nowhere known.
        doubtful: whether it does not on what is made to tell explanations apart, or a table or a
            mask that is shown is still another.
    """

    hypothesis: Hypothesis
    left: float
    reference: MutatedReference
    inputs: Inputs
    after: RecordingComparison
    fails_in: str = ""
    doubtful: bool = False

    @property
    def worth(self) -> tuple[Any, bool, bool]:
        """How much it explains: more is better."""
        return self.after.progress, not self.fails_in, not self.doubtful


@dataclass
class Tried:
    """What has been tried to explain one tap.

    Attributes:
        recording: of the subject.
        found: where it parts from the reference as it is understood so far.
        evidence: of that tap.
        elsewhere: the subject on other scenarios.
        rounding: whether only causes of one dtype's arithmetic can explain it.
        best: what goes farthest.
        ranked: what was proposed, with the error that each leaves at the tap.
        refuted: what made nothing better.
        out_of_time: what there was no time for, in words.
        hidden: taps that the subject does not show, between the last that agrees and this one.
    """

    recording: Recording
    found: RecordingComparison
    evidence: Evidence
    elsewhere: Elsewhere
    rounding: bool
    best: Trial | None = None
    ranked: list[tuple[Hypothesis, float]] = field(default_factory=list)
    refuted: list[Hypothesis] = field(default_factory=list)
    out_of_time: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    @property
    def explains(self) -> bool:
        """Whether the best leaves nothing, here or elsewhere."""
        best = self.best
        return (
            best is not None and best.after.first is None and not (best.fails_in or best.doubtful)
        )

    @property
    def goes_on(self) -> bool:
        """Whether the best explains one layer whole, so that it is looked for in the next."""
        best, found = self.best, self.found
        return (
            best is not None
            and best.hypothesis.layer is not None
            and best.left <= self.evidence.enough
            and best.after.first is not None
            and best.after.stage > found.stage
            and split_name(best.after.first.tap)[0] == split_name(self.evidence.tap)[0]
        )

    @property
    def suspects(self) -> tuple[tuple[Hypothesis, float], ...]:
        """What was proposed and not refuted, by what each leaves."""
        kept = [one for one in self.ranked if not any(one[0] is no for no in self.refuted)]
        return tuple(sorted(kept, key=lambda one: one[1]))

    def proposed(self, *, last: bool = False) -> list[tuple[Hypothesis, float]]:
        """Return what causes propose; see `ranked_hypotheses`."""
        return ranked_hypotheses(self.evidence, rounding=self.rounding, last=last)

    def add(self, ranked: list[tuple[Hypothesis, float]], deadline: float) -> Trial | None:
        """Try more on the whole reference; return the best of them."""
        best, untried, refuted = best_trial(
            self.recording, self.found, ranked, deadline, self.elsewhere
        )
        self.ranked += ranked
        self.refuted += refuted
        if untried:
            self.out_of_time += (f"{untried} hypotheses",)
        if best is not None and (self.best is None or best.worth > self.best.worth):
            self.best = best
        return best

    def add_edits(self, deadline: float) -> None:
        """Try edits of the tap's program."""
        if self.best is not None and self.best.after.first is None:
            self.evidence = replace(self.evidence, seconds=SECONDS_FOR_BETTER)
        began = time.thread_time()
        edits = self.proposed(last=True)
        if not edits and time.thread_time() - began > self.evidence.seconds:
            self.out_of_time += ("larger sets of edits",)
        self.add(edits, deadline)

    def add_chains(self, seconds: float, deadline: float) -> None:
        """Try what may be wrong with taps that are not shown."""
        chain = chain_of(self.recording, self.evidence)
        if chain is None:
            return
        self.hidden, began = chain.hidden, time.thread_time()
        ranked = chain_hypotheses(chain, seconds, rounding=self.rounding)
        now = time.thread_time()
        best = self.add(ranked, max(deadline, now + SECONDS_FOR_CHAINS))
        if not self.explains and now - began > seconds:
            self.out_of_time += ("edits behind taps that are not shown",)
        if best is not None and best is self.best:
            self.best = _with_alike(self.recording, best, ranked, self.evidence, self.elsewhere)


def ranked_hypotheses(
    evidence: Evidence, *, rounding: bool = False, last: bool = False
) -> list[tuple[Hypothesis, float]]:
    """Return what might explain the tap, with the error that each leaves at it, best first.

    Args:
        evidence: of the tap.
        rounding: whether only causes of one dtype's arithmetic can explain it.
        last: whether only those that are tried last are asked for; else all others.
    """
    found = []
    for number, hypothesis in enumerate(_propose(evidence, rounding, last)):
        try:
            left = remaining_error(evidence, hypothesis)
        except UNFIT:
            continue
        guessed = evidence.backward and hypothesis.left is None
        size = round(np.log10(max(left, evidence.enough, 1e-12)))
        found.append(((guessed, size, number), hypothesis, left))
    found.sort(key=lambda item: item[0])
    return [(hypothesis, left) for _, hypothesis, left in found]


def _propose(evidence: Evidence, rounding: bool, last: bool) -> Iterator[Hypothesis]:
    misshapen = evidence.subject[evidence.short].shape != evidence.truth[evidence.short].shape
    taps = {evidence.short, *evidence.flagged}
    for file in catalogue().values():
        if taps.isdisjoint(file.cause.taps) or file.cause.reshapes != misshapen:
            continue
        if (rounding and not file.cause.rounding) or (file.cause.rank >= LAST) != last:
            continue
        try:
            yield from file.propose(evidence)
        except UNFIT:
            continue


def best_trial(
    recording: Recording,
    found: RecordingComparison,
    ranked: Sequence[tuple[Hypothesis, float]],
    deadline: float,
    elsewhere: Elsewhere,
) -> tuple[Trial | None, int, list[Hypothesis]]:
    """Try the best hypotheses on the whole reference.

    Returns:
        The one that goes farthest, how many there was no time for, and which made nothing better.
    """
    evidence = found.evidence
    assert evidence is not None and found.first is not None
    best: Trial | None = None
    refuted: list[Hypothesis] = []
    first = found.first
    enough = max(WORTH_TRYING * first.error, first.limit * first.noise)
    worth = [(h, left) for h, left in ranked if left <= max(enough, h.noise)][:MOST_TRIALS]
    for tried, (hypothesis, left) in enumerate(worth):
        if time.thread_time() > deadline:
            return best, len(worth) - tried, refuted
        better = False
        for scoped in _scopes(hypothesis, evidence):
            reference = evidence.reference.with_changes(scoped.changes)
            inputs = _inputs(evidence.inputs, scoped)
            try:
                after = compare_recording(recording, reference, inputs)
            except UNFIT:  # what fits one operator need not fit all that it is tried on
                continue
            trial = Trial(scoped, left, reference, inputs, after)
            if after.first is None:
                fails_in = elsewhere.fails(scoped, reference)
                aside = not SETUP_TAPS.keys().isdisjoint(after.flagged)
                doubtful = not fails_in and (aside or elsewhere.doubts(scoped, reference))
                trial = replace(trial, fails_in=fails_in, doubtful=doubtful)
                if not (fails_in or doubtful):
                    return trial, 0, refuted
            better |= after.progress > found.progress
            if after.progress > found.progress and (best is None or trial.worth > best.worth):
                best = trial
        if not better:
            refuted.append(hypothesis)
    return best, 0, refuted


def _with_alike(
    recording: Recording,
    best: Trial,
    tried: Sequence[tuple[Hypothesis, float]],
    evidence: Evidence,
    elsewhere: Elsewhere,
) -> Trial:
    """Return a trial with what explains a whole chain as well: no tap in between tells them."""
    if best.after.first is not None:
        return best
    alike: list[str] = []
    seen = [_edits_of(best.hypothesis)]
    for other, _ in [one for one in tried if one[1] <= evidence.enough]:
        if _edits_of(other) in seen or len(seen) > MOST_ALIKE:
            continue
        seen.append(_edits_of(other))
        reference = evidence.reference.with_changes(other.changes)
        after = compare_recording(recording, reference, evidence.inputs)
        if after.first is None and not elsewhere.fails(other, reference):
            alike.append(other.said)
    return replace(best, hypothesis=replace(best.hypothesis, alike=tuple(alike)))


def _edits_of(hypothesis: Hypothesis) -> set[Any]:
    """Return what a hypothesis changes, wherever: the same at like taps is the same."""
    edits = (edit for change in hypothesis.changes for edit in change.edits)
    found: set[Any] = {(edit.kind, edit.step, edit.operands, edit.value) for edit in edits}
    return found or {hypothesis.said}


def _scopes(hypothesis: Hypothesis, evidence: Evidence) -> Iterator[Hypothesis]:
    """Yield the hypothesis for all layers, then for the one in question alone."""
    yield hypothesis
    layer, changes = evidence.layer, hypothesis.changes
    apart = [c for c in changes if c.tap and c.tap not in SETUP_TAPS and c.layers is None]
    if layer is not None and apart:
        only = tuple(c.within(layer) if c in apart else c for c in changes)
        yield replace(hypothesis, changes=only, layer=layer)


def _inputs(inputs: Inputs, hypothesis: Hypothesis) -> Inputs:
    if hypothesis.mask is not None:
        inputs = replace(inputs, mask=hypothesis.mask)
    if hypothesis.positions is not None:
        inputs = replace(inputs, positions=hypothesis.positions.astype(inputs.positions.dtype))
    return inputs
