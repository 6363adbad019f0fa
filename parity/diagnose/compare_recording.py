"""One recorded run of a subject, compared with references made wrong in different ways.

Shapes: B batch, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from parity.diagnose.evidence import Evidence
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.recording import Recording, Replay, head_taps, keys_values_until, positions
from parity.inputs import Inputs
from parity.lockstep.engine import Lockstep
from parity.lockstep.participants import ActiveRun, Chunk, Role, chunk_views
from parity.lockstep.setup import summed_taps
from parity.lockstep.threads import ComparisonThreads
from parity.noise.chains import runs_chains
from parity.result import TapResult
from parity.subjects.base import Arrays
from parity.taps import SETUP_TAPS, flow_key, split_name, stage_of

# A float64 softmax's rows add up to 1 to within this, in rows of a million keys.
ROW_SUM_NOISE = 1e-9


@dataclass(frozen=True)
class RecordingComparison:
    """Where a recording leaves a reference.

    Attributes:
        rows: every tap judged, up to the stage in which they part.
        first: the tap where they part; None if they agree to the end.
        stage: the number of its stage.
        flagged: setup taps of that call that differ.
        evidence: what is known there, but for a setup tap's.
    """

    rows: list[TapResult]
    first: TapResult | None
    stage: int
    flagged: tuple[str, ...]
    evidence: Evidence | None

    @property
    def progress(self) -> tuple[float, tuple[int, int, float]]:
        """How far they agree: larger is farther."""
        if self.first is None:
            return float("inf"), (0, 0, 0.0)
        return float(self.stage), flow_key(self.first.tap)

    def error(self, tap: str, step: int) -> float:
        """Return the error of one tap; infinite if its shape or finiteness differs."""
        for row in self.rows:
            if (row.tap, row.step) == (tap, step):
                return row.error if not row.problems or row.error else float("inf")
        return float("nan")


def compare_recording(
    recording: Recording, reference: MutatedReference, inputs: Inputs
) -> RecordingComparison:
    """Compare a recording with a reference stage by stage, as far as they agree.

    Args:
        recording: of the subject.
        reference: the truth to compare with, wrong or not, in float64.
        inputs: its scenario: of the same tokens, but masks and positions may be wrong too.
    """
    lane, chunks, layers = recording.subject.dtype, recording.chunks, recording.layers
    inputs = with_pads_shown(recording, inputs)
    mode = recording.mode
    chained = runs_chains(recording.subject.absent)
    honest = reference.noise_variants(lane, isolated=mode == "isolated" and not chained)
    active_runs = [ActiveRun(Replay(recording), frozenset({Role.SUBJECT}), mode, Replay(recording))]
    active_runs += [
        ActiveRun(one, frozenset({Role.NOISE}), mode, recording.begin(one, inputs))
        for one in honest
    ]
    run = recording.begin(reference, inputs)
    setup: Arrays = {}
    with ComparisonThreads() as pool:
        lockstep = Lockstep({lane: active_runs}, [inputs], pool, summed=summed_taps(reference))
        (comparator,) = lockstep.comparators
        stage = 0
        for chunk in chunk_views(inputs, chunks):
            for _ in range(layers + 2):
                truth = run.step()
                setup = truth if "positions" in truth else setup
                before = len(comparator.rows)
                shown = replace(chunk, mask=chunk.mask | _carrying(truth))
                lockstep.stage([shown], truth, run)
                rows = [_excuse(row, truth, reference, chunk) for row in comparator.rows[before:]]
                comparator.rows[before:] = rows
                failed = sorted(
                    (row for row in rows if not row.passed and row.tap not in SETUP_TAPS),
                    key=lambda row: flow_key(row.tap),
                )
                if failed:
                    return _comparison_at(
                        recording,
                        reference,
                        inputs,
                        comparator.rows,
                        failed[0],
                        stage,
                        (truth, setup),
                    )
                stage += 1
    flagged = tuple(dict.fromkeys(row.tap for row in comparator.rows if not row.passed))
    return RecordingComparison(comparator.rows, None, stage, flagged, None)


def with_pads_shown(recording: Recording, inputs: Inputs) -> Inputs:
    """Return a scenario whose pads see what the subject's do, and stand where they do.

    What a pad does is nobody's business, but where a fault mixes it with tokens it counts.
    """
    if inputs.valid.all() or recording.mode == "grad":
        return inputs
    mask, at = recording.whole("mask"), recording.whole("positions")
    if mask is not None and mask.shape == inputs.mask.shape and mask.dtype == bool:
        mask = np.where(inputs.valid[:, :, None], inputs.mask, mask)
        inputs = replace(inputs, mask=mask)
    if at is not None and at.shape == inputs.positions.shape:
        at = np.where(inputs.valid, inputs.positions, at).astype(inputs.positions.dtype)
        inputs = replace(inputs, positions=at)
    return inputs


def _excuse(row: TapResult, truth: Arrays, reference: MutatedReference, chunk: Chunk) -> TapResult:
    """Forgive weights what those of the wrong reference do not keep either.

    Rows need not add up to 1 where its own do not. Where those are NaN, hidden keys' weights may be
    so or not: that depends on whether the mask or the quotient comes last. And where it rounds
    weights to fewer bits, its variants, not the run's dtype, say by how much they may move.
    """
    if split_name(row.tap)[0] != "layers.attn_probs" or not row.problems:
        return row
    sums = truth[row.tap].sum(-1)
    forgiven: list[str] = []
    if not np.isfinite(sums).all() or np.minimum(abs(sums - 1), abs(sums)).max() > ROW_SUM_NOISE:
        # The bound on total variation is one of distributions.
        forgiven = ["rows of weights", "total variation"]
    real = np.broadcast_to(chunk.valid[:, None, :], sums.shape)
    if (sums[real] == 0).any():  # a real token that sees nothing has weights that add up to none
        forgiven += ["rows of weights"]
    if np.isnan(sums).any():
        forgiven += ["hidden keys carry weight"]
    if any(c.rounds and c.tap == "attn_probs" for c in reference.changes):
        forgiven += ["rows of weights", "total variation"]
    kept = tuple(said for said in row.problems if not any(what in said for what in forgiven))
    return replace(row, problems=kept)


def _carrying(truth: Arrays) -> np.ndarray:
    """Return which keys carry weight for a query in any head [B T S]: a wrong mask's too."""
    for name, value in truth.items():
        if split_name(name)[0] == "layers.attn_probs":
            return np.asarray((value > 0).any(axis=1))
    return np.zeros((), bool)


def _comparison_at(
    recording: Recording,
    reference: MutatedReference,
    inputs: Inputs,
    rows: list[TapResult],
    first: TapResult,
    stage: int,
    truths: tuple[Arrays, Arrays],
) -> RecordingComparison:
    truth, true_setup = truths
    call = stage // (recording.layers + 2)
    sizes = recording.chunks or (inputs.tokens.shape[1],)
    stop = sum(sizes[: call + 1])
    flagged = tuple(
        row.tap
        for row in rows
        if not row.passed and row.tap in SETUP_TAPS and row.step == first.step
    )
    evidence = Evidence(
        tap=first.tap,
        flagged=flagged,
        subject=_select_shown(recording, stage, first.tap),
        truth=name_short(truth),
        setup=name_short(recording.stages[call * (recording.layers + 2)]),
        true_setup=name_short(true_setup),
        columns=slice(stop - sizes[call], stop),
        chunks=recording.chunks,
        inputs=inputs,
        observed_mask=recording.whole("mask"),
        observed_positions=positions(recording, inputs, true_setup.get("rope.inv_freq")),
        reference=reference,
        lane=recording.subject.dtype,
        written=keys_values_until(recording, stage),
        ask=partial(head_taps, recording),
        enough=first.limit * first.noise,
    )
    if call:  # what is wrong in a later call need not be in those before
        evidence = replace(
            evidence, elsewhere=tuple(evidence_elsewhere(evidence, recording, inputs))
        )
    return RecordingComparison(rows, first, stage, flagged, evidence)


def evidence_elsewhere(
    evidence: Evidence, recording: Recording, inputs: Inputs
) -> Iterator[Evidence]:
    """Yield what another recording of the subject shows of the same tap, call by call.

    Args:
        evidence: of the tap.
        recording: the other.
        inputs: its scenario, as it is understood so far.
    """
    layers, stop = recording.layers, 0
    place = stage_of(evidence.tap, layers)
    for call, size in enumerate(recording.chunks or (inputs.tokens.shape[1],)):
        start, stop = stop, stop + size
        stage = call * (layers + 2) + place
        yield replace(
            evidence,
            subject=_select_shown(recording, stage, evidence.tap),
            truth={},
            setup=name_short(recording.stages[call * (layers + 2)]),
            columns=slice(start, stop),
            chunks=recording.chunks,
            inputs=inputs,
            observed_mask=None,
            observed_positions=None,
            written=keys_values_until(recording, stage),
            ask=None,
        )


def _select_shown(recording: Recording, stage: int, tap: str) -> dict[str, np.ndarray]:
    """Return the taps of a stage by short name, with what the operator of `tap` worked on."""
    stages, place = recording.stages, stage % (recording.layers + 2)
    head = place == recording.layers + 1
    taps = dict(stages[stage])
    last = f"layers.{recording.layers - 1}.output"
    if head and last in stages[stage - 1]:  # unless it shows its own input
        taps = {last: stages[stage - 1][last]} | taps
    if recording.given is not None:  # each operator worked on these, rounded to its dtype
        given = recording.given[stage] | (recording.given[stage - 1] if head else {})
        taps |= {n: given[n].astype(taps[n].dtype) for n in taps if n in given and n != tap}
    found = name_short(taps)
    before = "embed" if place == 1 else f"layers.{place - 2}.output"
    if split_name(tap)[0] == "layers.input" and before in stages[stage - 1]:
        handed = (stages if recording.given is None else recording.given)[stage - 1][before]
        found["handed_on"] = handed.astype(found["input"].dtype)
    return found


def name_short(stage: Arrays) -> dict[str, np.ndarray]:
    """Name a stage's taps without their layer; a cache's are `keys` and `values`."""
    found = {}
    for name, value in stage.items():
        parts = name.split(".")
        if parts[0] == "cache":
            found[{"k": "keys", "v": "values"}[parts[2]]] = value
        else:
            found[split_name(name)[0].removeprefix("layers.")] = value
    if "keys" not in found:
        found |= {
            new: found[old]
            for new, old in (("keys", "k_rope"), ("values", "v_proj"))
            if old in found
        }
    return found
