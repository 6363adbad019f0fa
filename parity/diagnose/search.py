"""From the first difference to its cause: hypotheses, each tried on the reference.

A hypothesis is first tried on the one operator, whose inputs the subject's own taps give. What
explains that is put into the whole reference; where subject and wrong reference then part, the
next cause is looked for, until they agree to the logits or nothing explains the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from parity.diagnose import whole_pass
from parity.diagnose.cause import Hypothesis, catalogue
from parity.diagnose.compare_recording import compare_recording
from parity.diagnose.describe import (
    CauseStep,
    Search,
    describe_mixture,
    describe_precision,
    describe_search,
    describe_unused,
)
from parity.diagnose.elsewhere import Elsewhere, record_elsewhere
from parity.diagnose.evidence import Evidence
from parity.diagnose.lanes import narrower, said_of_lanes
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.recording import Recording, record, record_backward, truncated_to_fit
from parity.diagnose.trials import Tried
from parity.inputs import Inputs
from parity.result import CauseReport, Divergence, TapResult
from parity.subjects.base import CheckpointLike, Subject, WholeSubject
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import SETUP_TAPS

# Modes in which a cause is looked for.
EXPLAINED = ("free", "decode", "isolated", "grad", whole_pass.MODE)
# Scenarios that are looked at until one shows the divergence by itself.
MOST_SCENARIOS = 3
# Causes looked for one after the other.
MOST_CAUSES = 12
# From here on float32 rounds an angle by a thousandth of a radian.
FAR_POSITION = 1 << 13
# Of a processor, for a cause; and what share of it the search for edits may take.
SECONDS = 30.0
SHARE_FOR_EDITS = 2 / 3


def diagnose(
    recording: Recording,
    checkpoint: CheckpointLike,
    *,
    backward: Recording | None = None,
    rounding: bool = False,
    seconds: float = SECONDS,
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
        reference = MutatedReference(checkpoint)
        narrow = narrower(recording, reference, recording.inputs)
        if narrow is not None:
            return narrow
        found = _search(
            recording, reference, recording.inputs, rounding, seconds, elsewhere or Elsewhere()
        )
        if found.end.first is None and found.fails_in and elsewhere is not None:
            found = _search_on(found, recording, rounding, seconds, elsewhere)
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
    steps: list[CauseStep] = []
    search = Search(start, start, (), (), reference, inputs, seconds)
    # The same in one layer after the other counts once.
    while found.first is not None and len({s.hypothesis.said for s in steps}) < MOST_CAUSES:
        assert found.evidence is not None
        before = (*elsewhere.before, *(step.hypothesis for step in steps))
        others = replace(elsewhere, before=before)
        evidence = replace(others.beside(found.evidence), seconds=SHARE_FOR_EDITS * seconds)
        tried = Tried(recording, found, evidence, others, rounding)
        tried.add([*_same_elsewhere(steps, evidence), *tried.proposed()], deadline)
        if not (tried.explains or tried.goes_on):
            tried.add_edits(deadline)
        if tried.best is None or tried.best.after.first is not None:
            tried.add_chains(seconds, deadline)
        search = replace(
            search, suspects=tried.suspects, out_of_time=tried.out_of_time, hidden=tried.hidden
        )
        best = tried.best
        if best is None:
            break
        tap, step = found.first.tap, found.first.step
        error, after = found.error(tap, step), best.after.error(tap, step)
        steps.append(CauseStep(best.hypothesis, tap, error, after, best.left, best.fails_in))
        found = best.after
        search = replace(
            search, end=found, steps=tuple(steps), reference=best.reference, inputs=best.inputs
        )
    return search


def _search_on(
    found: Search, recording: Recording, rounding: bool, seconds: float, elsewhere: Elsewhere
) -> Search:
    """Return what explains a scenario and, with what another scenario alone shows, all of them.

    Of two faults one may show where rows are padded differently, and nowhere else. What was found
    is returned as it is where the other scenario is not explained, too.
    """
    before = (*elsewhere.before, *(step.hypothesis for step in found.steps))
    for other in elsewhere.recordings:
        inputs = found.inputs_like(other.inputs, other.chunks)
        if inputs is None or compare_recording(other, found.reference, inputs).first is None:
            continue
        rest = [recording, *(one for one in elsewhere.recordings if one is not other)]
        around = replace(elsewhere, recordings=rest, before=before)
        later = _search(other, found.reference, inputs, rounding, seconds / 2, around)
        return found if later.end.first or later.fails_in else found.then(later)
    return found


def find_cause(
    first: Divergence,
    rows: Sequence[TapResult],
    inputs: Sequence[Inputs],
    checkpoint: CheckpointLike,
    make_subject: Callable[[str], Subject],
    decode_chunks: Callable[[Inputs], list[int]],
    seconds: float = SECONDS,
    *,
    same_checkpoint: bool = True,
) -> CauseReport | None:
    """Say why a run diverged: on the smallest of its scenarios that shows the same first tap.

    Args:
        first: where the run diverges first.
        rows: every tap judged.
        inputs: the run's scenarios.
        checkpoint: what was run.
        make_subject: makes the subject of a dtype anew.
        decode_chunks: how a scenario is fed through a cache.
        seconds: as for `diagnose`.
        same_checkpoint: whether it is the one that the run was judged by: by another the subject
            may be right.

    Returns:
        As `diagnose`, of the mode in which it diverges; None where that is none of a model's
        passes: what is written, a tokenizer. Of a pass that is run whole, see `whole_pass`.
    """
    row, rounding = first.row, first.difference == "rounding"
    if row.mode == "probe":
        return describe_precision(row)
    if row.mode not in EXPLAINED:
        return None
    alike = {
        r.scenario
        for r in rows
        if (r.lane, r.mode, r.tap) == (row.lane, row.mode, row.tap) and not r.passed
    }
    chosen = sorted((i for i in inputs if i.name in alike), key=_poorness)
    subject = make_subject(row.lane)
    found = None

    def cause_in(one: Inputs, row: TapResult, subject: Subject) -> CauseReport | None:
        return _cause_in(one, row, subject, inputs, checkpoint, decode_chunks, rounding, seconds)

    if row.mode == whole_pass.MODE and not hasattr(subject, "production"):
        return None
    for one in chosen[:MOST_SCENARIOS]:
        if row.mode == whole_pass.MODE:
            whole = cast("WholeSubject", subject)
            found = whole_pass.cause_of_whole(one, row, rows, whole, checkpoint, cause_in)
        else:
            found = cause_in(one, row, subject)
        if found is not None:
            if row.mode not in ("grad", whole_pass.MODE):
                with np.errstate(all="ignore"):
                    found = said_of_lanes(
                        found,
                        replace(row, scenario=one.name),
                        rows,
                        lambda lane, one=one: _recorded(  # type: ignore[misc]
                            make_subject(lane), one, row, checkpoint, decode_chunks
                        ),
                    )
            break
    narrow = [r for r in rows if (r.mode, r.tap) == ("probe", row.tap) and not r.passed]
    if narrow and row.lane == "f32" and not (found and found.confirmed):
        return describe_precision(narrow[0])
    # What is near its limit may be within it where fewer tokens are looked at.
    if found is not None or rounding or not same_checkpoint:
        return found
    moved = any(not one.passed and one.tap not in SETUP_TAPS for one in rows)
    return describe_mixture(row) if moved or row.tap not in SETUP_TAPS else describe_unused(row)


def _cause_in(
    chosen: Inputs,
    row: TapResult,
    subject: Subject,
    inputs: Sequence[Inputs],
    checkpoint: CheckpointLike,
    decode_chunks: Callable[[Inputs], list[int]],
    rounding: bool,
    seconds: float,
) -> CauseReport | None:
    """Say why a subject differs in one scenario; None if it does not in that one by itself."""
    layers = checkpoint.config.num_hidden_layers
    if row.mode == "grad":
        # What is wrong forwards spoils every gradient: that is looked for first.
        chosen = truncated_to_fit(chosen, checkpoint.config, row.lane, layers)
        return diagnose(
            record(subject, chosen, None, layers),
            checkpoint,
            backward=record_backward(subject, chosen, layers),
            rounding=rounding,
            seconds=seconds,
        )
    recording = _recorded(subject, chosen, row, checkpoint, decode_chunks)
    elsewhere = record_elsewhere(recording, inputs, checkpoint.config, decode_chunks)
    found = diagnose(recording, checkpoint, rounding=rounding, seconds=seconds, elsewhere=elsewhere)
    if rounding and found and not found.confirmed:
        # A path of this dtype's own may do anything, and not be far off: then a cause of another
        # meaning is one if the experiment confirms it, and no suspect if it does not.
        other = diagnose(recording, checkpoint, seconds=seconds, elsewhere=elsewhere)
        found = other if other and other.confirmed else found
    return found


def _recorded(
    subject: Subject,
    chosen: Inputs,
    row: TapResult,
    checkpoint: CheckpointLike,
    decode_chunks: Callable[[Inputs], list[int]],
) -> Recording:
    """Record a subject on as much of a scenario as can be kept, in a row's mode forwards."""
    layers = checkpoint.config.num_hidden_layers
    # What is handed the reference's rotations shows nothing of a wrong table of its own.
    isolated = row.mode == "isolated" and row.tap not in SETUP_TAPS
    # An isolated run is kept with the reference's values, in float64.
    kept = "f64" if isolated else subject.dtype
    chosen = truncated_to_fit(chosen, checkpoint.config, kept, layers)
    chunks = decode_chunks(chosen) if row.mode == "decode" else None
    f64_reference = TorchReference(checkpoint) if isolated else None
    return record(subject, chosen, chunks, layers, f64_reference)


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
    if all(catalogue()[one.id].cause.rounding for one in (cause, *cause.others)):
        return first
    return replace(first, difference="computation")


def _same_elsewhere(
    steps: Sequence[CauseStep], evidence: Evidence
) -> Iterator[tuple[Hypothesis, float]]:
    """Yield what was wrong in a layer before, in the layer at hand: it need not be alone."""
    if not steps or steps[-1].hypothesis.layer is None or evidence.layer is None:
        return
    last, layer = steps[-1].hypothesis, evidence.layer
    if last.changes[0].tap == evidence.short:
        changes = tuple(change.within(layer) for change in last.changes)
        yield replace(last, changes=changes, layer=layer), 0.0
