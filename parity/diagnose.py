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
import torch
from torch import Tensor

from parity.causes.base import HELD_TAPS, Evidence, Hypothesis, catalogue
from parity.causes.operators import LINEAR_INPUTS, NORM_INPUTS, weight_name
from parity.causes.wrong import Held, Site, WrongReference
from parity.comparison.reference import ReferenceTap
from parity.comparison.tap import compare_tap
from parity.examine import Finding, examine
from parity.explained import Search, Step, described, described_precision
from parity.inputs import Inputs
from parity.recording import Recording, record, record_backward, shortened
from parity.result import Divergence, TapRow
from parity.subjects.base import CheckpointLike, Subject
from parity.subjects.torch_arrays import to_torch
from parity.subjects.torch_reference import TorchReference

# Causes looked for one after the other, and hypotheses tried in full for each of them.
MOST_CAUSES = 12
MOST_TRIALS = 6
# What a cause raises that needs a tap which this subject does not show, or of another shape.
UNFIT = (KeyError, IndexError, ValueError, RuntimeError)
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
    """

    hypothesis: Hypothesis
    left: float
    reference: WrongReference
    inputs: Inputs
    after: Finding


def diagnose(
    recording: Recording,
    checkpoint: CheckpointLike,
    *,
    backward: Recording | None = None,
    rounding: bool = False,
    seconds: float = 30.0,
) -> dict[str, Any] | None:
    """Say why a recorded run differs from the reference.

    Args:
        recording: of the subject.
        checkpoint: what both run.
        backward: of the same subject on the same inputs; examined once the forward pass agrees,
            with the reference as wrong as that has to be.
        rounding: whether float64 is equal and the difference one of rounding: a cause of another
            meaning is then none.
        seconds: for each recording; no new hypothesis is tried in full after this time.

    Returns:
        A plain description (see `parity.explained.described`), or None if all equals the reference.
    """
    with np.errstate(all="ignore"):  # faulty runs hold NaN and infinity
        found = _searched(
            recording, WrongReference(checkpoint), recording.inputs, rounding, seconds
        )
        if backward is not None and found.end.first is None:
            later = _searched(backward, found.reference, found.inputs, rounding, seconds)
            found = found.then(later)
        return described(found)


def _searched(
    recording: Recording,
    reference: WrongReference,
    inputs: Inputs,
    rounding: bool,
    seconds: float,
) -> Search:
    start = found = examine(recording, reference, inputs)
    deadline = time.monotonic() + seconds
    steps: list[Step] = []
    suspects: list[tuple[Hypothesis, float]] = []
    untried = 0
    while found.first is not None and len(steps) < MOST_CAUSES:
        assert found.evidence is not None
        ranked = ranked_hypotheses(found.evidence, rounding=rounding)
        best, untried, refuted = _best_trial(recording, found, ranked, deadline)
        suspects = [one for one in ranked if not any(one[0] is tried for tried in refuted)]
        if best is None:
            break
        tap, step = found.first.tap, found.first.step
        before, after = found.error(tap, step), best.after.error(tap, step)
        steps.append(Step(best.hypothesis, tap, before, after, best.left))
        reference, inputs, found = best.reference, best.inputs, best.after
    return Search(start, found, tuple(steps), tuple(suspects), reference, inputs, untried)


def cause_of(
    first: Divergence,
    rows: Sequence[TapRow],
    inputs: Sequence[Inputs],
    checkpoint: CheckpointLike,
    make_subject: Callable[[str], Subject],
    decode_chunks: Callable[[Inputs], list[int]],
) -> dict[str, Any] | None:
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
        return described_precision(row)
    if row.mode not in ("free", "decode", "isolated", "grad"):
        return None
    alike = {
        r.scenario
        for r in rows
        if (r.lane, r.mode, r.tap) == (row.lane, row.mode, row.tap) and not r.passed
    }
    chosen = min((i for i in inputs if i.name in alike), key=lambda i: i.tokens.size)
    subject = make_subject(row.lane)
    layers = checkpoint.config.num_hidden_layers
    if row.mode == "grad":
        # What is wrong forwards spoils every gradient: that is looked for first.
        chosen = shortened(chosen, checkpoint.config, row.lane, layers)
        return diagnose(
            record(subject, chosen, None, layers),
            checkpoint,
            backward=record_backward(subject, chosen, layers),
            rounding=rounding,
        )
    # An isolated run is kept with the reference's values, in float64.
    kept = "f64" if row.mode == "isolated" else row.lane
    chosen = shortened(chosen, checkpoint.config, kept, layers)
    chunks = decode_chunks(chosen) if row.mode == "decode" else None
    f64_reference = TorchReference(checkpoint) if row.mode == "isolated" else None
    recording = record(subject, chosen, chunks, layers, f64_reference)
    found = diagnose(recording, checkpoint, rounding=rounding)
    if rounding and not (found and found["confirmed"]):
        # A path of this dtype's own may do anything, and not be far off: then a cause of another
        # meaning is one if the experiment confirms it, and no suspect if it does not.
        other = diagnose(recording, checkpoint)
        found = other if other and other["confirmed"] else found
    narrow = [r for r in rows if (r.mode, r.tap) == ("probe", row.tap) and not r.passed]
    if narrow and row.lane == "f32" and not (found and found["confirmed"]):
        return described_precision(narrow[0])
    return found


def settled(first: Divergence, cause: dict[str, Any] | None) -> Divergence:
    """Return a divergence as its cause has it: a confirmed one of another computation tells.

    In 16 bits rounding is so coarse that figures alone do not.
    """
    if first.difference != "rounding" or not (cause and cause["confirmed"]):
        return first
    if catalogue()[cause["id"]].cause.rounding:
        return first
    return replace(first, difference="computation")


def ranked_hypotheses(
    evidence: Evidence, *, rounding: bool = False
) -> list[tuple[Hypothesis, float]]:
    """Return what might explain the tap, with the error that each leaves at it, best first.

    Args:
        evidence: of the tap.
        rounding: whether only causes of one dtype's arithmetic can explain it.
    """
    found = []
    for number, hypothesis in enumerate(_proposed(evidence, rounding)):
        try:
            left = remaining_error(evidence, hypothesis)
        except UNFIT:
            continue
        guessed = evidence.backward and hypothesis.left is None
        size = round(max(np.log10(max(left, 1e-300)), -12))
        found.append(((guessed, size, number), hypothesis, left))
    found.sort(key=lambda item: item[0])
    return [(hypothesis, left) for _, hypothesis, left in found]


def _proposed(evidence: Evidence, rounding: bool) -> Iterator[Hypothesis]:
    misshapen = evidence.subject[evidence.short].shape != evidence.truth[evidence.short].shape
    for file in catalogue().values():
        if evidence.short not in file.cause.taps or file.cause.reshapes != misshapen:
            continue
        if rounding and not file.cause.rounding:
            continue
        try:
            yield from file.propose(evidence)
        except UNFIT:
            continue


def remaining_error(evidence: Evidence, hypothesis: Hypothesis) -> float:
    """Return the tap's error against the operator made wrong, on the subject's own inputs.

    0 means untried: masks, positions, weights and what is wrong backwards show in the whole
    reference alone.
    """
    tap = evidence.short
    if evidence.backward:
        return hypothesis.left or 0.0
    changes = [c for c in hypothesis.changes if c.tap == tap and c.value is not None]
    weights = [c for c in hypothesis.changes if c.weight is not None]
    if not changes and not weights:
        return 0.0
    reference = evidence.reference
    value = recomputed(evidence, reference.with_changes(weights), _wide(evidence.truth[tap]))
    seen = {name: _wide(array) for name, array in evidence.subject.items() if array.dtype != bool}
    if tap in HELD_TAPS:  # what it holds is what is in question
        seen |= {name: _wide(evidence.truth[name]) for name in HELD_TAPS if name in evidence.truth}
    freq = evidence.setup.get("rope.inv_freq", evidence.true_setup["rope.inv_freq"])
    cos, sin = reference.angles(
        to_torch(np.asarray(freq, np.float64)), to_torch(np.array(evidence.positions))
    )
    mask = to_torch(np.array(evidence.mask))
    held = Held(
        evidence.sizes,
        to_torch(np.array(evidence.inputs.valid)),
        {i: (_wide(k), _wide(v)) for i, (k, v) in evidence.written.items()},
    )
    with torch.no_grad():
        for change in changes:
            assert change.value is not None
            value = change.value(
                Site(reference, evidence.layer, tap, value, seen, cos, sin, mask, held)
            )
    wrong = value.numpy()
    cells = evidence.mask | ((wrong > 0).any(1) if tap == "attn_probs" else False)
    rows = evidence.held if tap in HELD_TAPS else evidence.valid
    difference = compare_tap(ReferenceTap(evidence.tap, wrong, rows, cells), evidence.subject[tap])
    return float(difference.relative.max()) if np.isfinite(difference.relative).all() else 1e300


def _wide(array: np.ndarray) -> Tensor:
    return to_torch(np.asarray(array, np.float64))


def recomputed(evidence: Evidence, reference: WrongReference, otherwise: Tensor) -> Tensor:
    """Return the tap as the reference computes it of the subject's inputs; weights count."""
    tap, prefix = evidence.short, f"model.layers.{evidence.layer}"

    def given(name: str) -> Tensor:
        return _wide(evidence.subject[name])

    with torch.no_grad():
        if tap == "embed":
            ids = evidence.inputs.tokens[:, evidence.columns].astype(np.int64)
            return reference.embed(to_torch(ids))
        if tap in NORM_INPUTS:
            name = "model.norm" if tap == "norm" else f"{prefix}.{tap}"
            return reference.rms_norm(given(NORM_INPUTS[tap]), name)
        if tap in LINEAR_INPUTS:
            x = given(LINEAR_INPUTS[tap])
            name = weight_name(tap, evidence.layer, reference.config).removesuffix(".weight")
            return reference.linear(x.reshape(*x.shape[:2], -1), name).reshape(otherwise.shape)
    return otherwise


def _best_trial(
    recording: Recording,
    found: Finding,
    ranked: Sequence[tuple[Hypothesis, float]],
    deadline: float,
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
        if time.monotonic() > deadline:
            return best, len(worth) - tried, refuted
        better = False
        for scoped in _scopes(hypothesis, evidence):
            reference = evidence.reference.with_changes(scoped.changes)
            inputs = _inputs(evidence.inputs, scoped)
            after = examine(recording, reference, inputs)
            trial = Trial(scoped, left, reference, inputs, after)
            if after.first is None:
                return trial, 0, refuted
            better |= after.progress > found.progress
            farthest = found if best is None else best.after
            if after.progress > farthest.progress:
                best = trial
        if not better:
            refuted.append(hypothesis)
    return best, 0, refuted


def _scopes(hypothesis: Hypothesis, evidence: Evidence) -> Iterator[Hypothesis]:
    """Yield the hypothesis for all layers, then for the one in question alone."""
    yield hypothesis
    layer, changes = evidence.layer, hypothesis.changes
    if layer is not None and any(c.tap and c.layers is None for c in changes):
        only = tuple(c.within(layer) if c.tap and c.layers is None else c for c in changes)
        yield replace(hypothesis, changes=only, said=f"{hypothesis.said} in layer {layer}")


def _inputs(inputs: Inputs, hypothesis: Hypothesis) -> Inputs:
    if hypothesis.mask is not None:
        inputs = replace(inputs, mask=hypothesis.mask)
    if hypothesis.positions is not None:
        inputs = replace(inputs, positions=hypothesis.positions.astype(inputs.positions.dtype))
    return inputs
