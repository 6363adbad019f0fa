"""From the first difference to its cause: hypotheses, each tried on the reference.

A hypothesis is first tried on the one operator, whose inputs the subject's own taps give. What
explains that is put into the whole reference; where subject and wrong reference then part, the
next cause is looked for, until they agree to the logits or nothing explains the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parity.diagnose.cause import LAST, Hypothesis, catalogue
from parity.diagnose.chains import chain_hypotheses, chain_of
from parity.diagnose.compare_recording import RecordingComparison, compare_recording
from parity.diagnose.describe import Search, Step, describe_precision, describe_search
from parity.diagnose.elsewhere import Elsewhere, record_elsewhere
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.operator_trial import remaining_error
from parity.diagnose.recording import Recording, record, record_backward, truncated_to_fit
from parity.inputs import Inputs
from parity.result import CauseReport, Divergence, TapResult
from parity.subjects.base import CheckpointLike, Subject
from parity.subjects.torch_reference.subject import TorchReference

# Causes looked for one after the other, and hypotheses tried in full for each of them.
MOST_CAUSES = 12
MOST_TRIALS = 12
# Explanations of a chain that are held against all that the best was.
MOST_ALIKE = 4
# For what explains a chain, to be tried in full.
SECONDS_FOR_CHAINS = 10.0
# From here on float32 rounds an angle by a thousandth of a radian.
FAR_POSITION = 1 << 13
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
        doubtful: whether it does not on what is made to tell explanations apart.
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


def diagnose(
    recording: Recording,
    checkpoint: CheckpointLike,
    *,
    backward: Recording | None = None,
    rounding: bool = False,
    seconds: float = 30.0,
    elsewhere: Elsewhere | None = None,
) -> CauseReport | None:
    """Say why a recorded run differs from the reference.

    Args:
        recording: of the subject.
        checkpoint: what both run.
        backward: of the same subject on the same inputs; examined once the forward pass agrees,
            with the reference as wrong as that has to be.
        rounding: whether float64 is equal and the difference one of rounding: a cause of another
            meaning is then none.
        seconds: of this thread's processor, for each recording; no new hypothesis is tried in full
            after this time. A busy machine finds no less than a quiet one.
        elsewhere: the same subject on other scenarios, where what explains the first holds too.

    Returns:
        What was found, or None if all equals the reference.
    """
    with np.errstate(all="ignore"):  # faulty runs hold NaN and infinity
        found = _search(
            recording,
            MutatedReference(checkpoint),
            recording.inputs,
            rounding,
            seconds,
            elsewhere or Elsewhere(),
        )
        if backward is not None and found.end.first is None:
            later = _search(backward, found.reference, found.inputs, rounding, seconds, Elsewhere())
            found = found.then(later)
        return describe_search(found)


def _search(
    recording: Recording,
    reference: MutatedReference,
    inputs: Inputs,
    rounding: bool,
    seconds: float,
    elsewhere: Elsewhere,
) -> Search:
    start = found = compare_recording(recording, reference, inputs)
    deadline = time.thread_time() + seconds
    steps: list[Step] = []
    suspects: list[tuple[Hypothesis, float]] = []
    hidden: tuple[str, ...] = ()
    untried = 0
    # The same in one layer after the other counts once.
    while found.first is not None and len({s.hypothesis.said for s in steps}) < MOST_CAUSES:
        assert found.evidence is not None
        others = replace(elsewhere, before=tuple(step.hypothesis for step in steps))
        evidence = others.beside(found.evidence)
        ranked = [
            *_same_elsewhere(steps, evidence),
            *ranked_hypotheses(evidence, rounding=rounding),
        ]
        best, untried, refuted = _best_trial(recording, found, ranked, deadline, others)
        if best is None or best.after.first is not None or best.fails_in or best.doubtful:
            if best is not None and best.after.first is None:
                evidence = replace(evidence, seconds=SECONDS_FOR_BETTER)
            edits = ranked_hypotheses(evidence, rounding=rounding, last=True)
            other, more, wrong = _best_trial(recording, found, edits, deadline, others)
            untried, refuted = untried + more, refuted + wrong
            ranked = sorted(ranked + edits, key=lambda one: one[1])
            if other and (best is None or other.worth > best.worth):
                best = other
        if best is None or best.after.first is not None:
            chain = chain_of(recording, evidence)
            if chain is not None:
                hidden = chain.hidden
                tried = chain_hypotheses(chain, seconds, rounding=rounding)
                later = max(deadline, time.thread_time() + SECONDS_FOR_CHAINS)
                other, more, wrong = _best_trial(recording, found, tried, later, others)
                untried, refuted = untried + more, refuted + wrong
                ranked = sorted(ranked + tried, key=lambda one: one[1])
                if other and (best is None or other.worth > best.worth):
                    best = _with_alike(recording, other, tried, evidence, others)
        suspects = [one for one in ranked if not any(one[0] is tried for tried in refuted)]
        if best is None:
            break
        tap, step = found.first.tap, found.first.step
        before, after = found.error(tap, step), best.after.error(tap, step)
        steps.append(Step(best.hypothesis, tap, before, after, best.left, best.fails_in))
        reference, inputs, found = best.reference, best.inputs, best.after
    return Search(start, found, tuple(steps), tuple(suspects), reference, inputs, untried, hidden)


def find_cause(
    first: Divergence,
    rows: Sequence[TapResult],
    inputs: Sequence[Inputs],
    checkpoint: CheckpointLike,
    make_subject: Callable[[str], Subject],
    decode_chunks: Callable[[Inputs], list[int]],
) -> CauseReport | None:
    """Say why a run diverged: on the smallest of its scenarios that shows the same first tap.

    Args:
        first: where the run diverges first.
        rows: every tap judged.
        inputs: the run's scenarios.
        checkpoint: what was run.
        make_subject: makes the subject of a dtype anew.
        decode_chunks: how a scenario is fed through a cache.

    Returns:
        As `diagnose`, of the mode in which it diverges; None where that shows nothing but logits:
        the compiled run without taps.
    """
    row, rounding = first.row, first.difference == "rounding"
    if row.mode == "probe":
        return describe_precision(row)
    if row.mode not in ("free", "decode", "isolated", "grad"):
        return None
    alike = {
        r.scenario
        for r in rows
        if (r.lane, r.mode, r.tap) == (row.lane, row.mode, row.tap) and not r.passed
    }
    chosen = min((i for i in inputs if i.name in alike), key=_poorness)
    subject = make_subject(row.lane)
    layers = checkpoint.config.num_hidden_layers
    if row.mode == "grad":
        # What is wrong forwards spoils every gradient: that is looked for first.
        chosen = truncated_to_fit(chosen, checkpoint.config, row.lane, layers)
        return diagnose(
            record(subject, chosen, None, layers),
            checkpoint,
            backward=record_backward(subject, chosen, layers),
            rounding=rounding,
        )
    # An isolated run is kept with the reference's values, in float64.
    kept = "f64" if row.mode == "isolated" else row.lane
    chosen = truncated_to_fit(chosen, checkpoint.config, kept, layers)
    chunks = decode_chunks(chosen) if row.mode == "decode" else None
    f64_reference = TorchReference(checkpoint) if row.mode == "isolated" else None
    recording = record(subject, chosen, chunks, layers, f64_reference)
    elsewhere = record_elsewhere(recording, inputs, decode_chunks)
    found = diagnose(recording, checkpoint, rounding=rounding, elsewhere=elsewhere)
    if rounding and not (found and found.confirmed):
        # A path of this dtype's own may do anything, and not be far off: then a cause of another
        # meaning is one if the experiment confirms it, and no suspect if it does not.
        other = diagnose(recording, checkpoint, elsewhere=elsewhere)
        found = other if other and other.confirmed else found
    narrow = [r for r in rows if (r.mode, r.tap) == ("probe", row.tap) and not r.passed]
    if narrow and row.lane == "f32" and not (found and found.confirmed):
        return describe_precision(narrow[0])
    return found


def _poorness(inputs: Inputs) -> tuple[bool, bool, int]:
    """Return how poorly a scenario tells causes: small is good.

    A single row hides what goes wrong between rows, and narrow dtypes round far positions' angles.
    """
    far = int(inputs.positions.max(initial=0)) >= FAR_POSITION
    return len(inputs.tokens) == 1, far, inputs.tokens.size


def refine_difference(first: Divergence, cause: CauseReport | None) -> Divergence:
    """Return a divergence as its cause has it: a confirmed one of another computation tells.

    In 16 bits rounding is so coarse that figures alone do not.
    """
    if first.difference != "rounding" or not (cause and cause.confirmed):
        return first
    if catalogue()[cause.id].cause.rounding:
        return first
    return replace(first, difference="computation")


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
        size = round(max(np.log10(max(left, 1e-300)), -12))
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


def _best_trial(
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
                doubtful = not fails_in and elsewhere.doubts(scoped, reference)
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
    for other, _ in [one for one in tried if one[1] <= evidence.enough][:MOST_ALIKE]:
        if other.changes == best.hypothesis.changes or other.said in alike:
            continue
        reference = evidence.reference.with_changes(other.changes)
        after = compare_recording(recording, reference, evidence.inputs)
        if after.first is None and not elsewhere.fails(other, reference):
            alike.append(other.said)
    return replace(best, hypothesis=replace(best.hypothesis, alike=tuple(alike)))


def _same_elsewhere(
    steps: Sequence[Step], evidence: Evidence
) -> Iterator[tuple[Hypothesis, float]]:
    """Yield what was wrong in a layer before, in the layer at hand: it need not be alone."""
    if not steps or steps[-1].hypothesis.layer is None or evidence.layer is None:
        return
    last, layer = steps[-1].hypothesis, evidence.layer
    if last.changes[0].tap == evidence.short:
        changes = tuple(change.within(layer) for change in last.changes)
        yield replace(last, changes=changes, layer=layer), 0.0


def _scopes(hypothesis: Hypothesis, evidence: Evidence) -> Iterator[Hypothesis]:
    """Yield the hypothesis for all layers, then for the one in question alone."""
    yield hypothesis
    layer, changes = evidence.layer, hypothesis.changes
    if layer is not None and any(c.tap and c.layers is None for c in changes):
        only = tuple(c.within(layer) if c.tap and c.layers is None else c for c in changes)
        yield replace(hypothesis, changes=only, layer=layer)


def _inputs(inputs: Inputs, hypothesis: Hypothesis) -> Inputs:
    if hypothesis.mask is not None:
        inputs = replace(inputs, mask=hypothesis.mask)
    if hypothesis.positions is not None:
        inputs = replace(inputs, positions=hypothesis.positions.astype(inputs.positions.dtype))
    return inputs
