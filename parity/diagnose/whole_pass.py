"""Why a model that is run whole differs where, watched stage by stage, it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from parity.diagnose.compare_recording import compare_recording
from parity.diagnose.elsewhere import MOST_COLUMNS
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.recording import Recording, first_columns, record, record_backward
from parity.inputs import Inputs
from parity.result import CauseReport, TapResult
from parity.subjects.base import UNCOMPILED, WHOLE_MAPS, CheckpointLike, Subject, WholeSubject
from parity.taps import GRAD_TAPS, split_name

# The mode of a pass that is run whole, forwards or backwards.
MODE = "production"

TITLES = {
    WHOLE_MAPS: "attention in blocks differs from whole maps",
    UNCOMPILED: "the compiled pass differs from its operations one by one",
    "": "the pass as a whole differs from its stages one by one",
}


# Says why what is watched differs in a scenario, as a row has it; None where it does not.
FindCause = Callable[[Inputs, TapResult, Subject], CauseReport | None]


def cause_of_whole(
    inputs: Inputs,
    row: TapResult,
    rows: Sequence[TapResult],
    subject: WholeSubject,
    checkpoint: CheckpointLike,
    cause_in: FindCause,
) -> CauseReport | None:
    """Say what a pass that is run whole does otherwise than the same pass stage by stage.

    It is run again in other ways, each nearer to how it is watched: the first that is equal tells.
    Attention in blocks can be watched, and is explained as any subject is.

    Args:
        inputs: a scenario.
        row: where it differs, of what comes out of the pass.
        rows: every tap judged.
        subject: watched, it is equal.
        checkpoint: what is run.
        cause_in: explains what is watched.

    Returns:
        What was found; None where this scenario by itself does not show the difference.
    """
    backward = row.tap == "loss" or split_name(row.tap)[0] in GRAD_TAPS
    layers = checkpoint.config.num_hidden_layers
    reference = MutatedReference(checkpoint)

    def recorded(one: Subject) -> Recording:
        if backward:
            return record_backward(one, inputs, layers)
        return record(one, inputs, None, layers)

    def first(one: Subject) -> TapResult | None:
        return compare_recording(recorded(one), reference, inputs).first

    before = first(subject.production())
    if before is None:
        return None
    mode = "grad" if backward else "free"
    evidence, found = [_watched(row, rows, mode)], ""
    for way, other in subject.other_ways().items():
        after = first(other)
        if after is None:
            evidence.append(f"{way} it is equal too")
            found = way
            break
        evidence.append(f"{way} it differs as well: error {after.error:.1e} at {after.tap}")
    if found == WHOLE_MAPS and (blocks := subject.in_blocks()) is not None:
        cause = _in_blocks(inputs, replace(row, mode=mode), blocks, cause_in)
        if cause is not None:
            return replace(
                cause,
                summary=f"{cause.summary}; where attention is in blocks alone",
                evidence=[*evidence, _apart(), *cause.evidence],
            )
        evidence.append("watched, attention in blocks is equal: it differs when compiled whole")
    return CauseReport(
        id="",
        title=TITLES[found],
        summary=f"{TITLES[found]}: error {before.error:.1e} at {before.tap}",
        evidence=[*evidence, _apart()],
    )


def _in_blocks(
    inputs: Inputs, row: TapResult, blocks: Subject, cause_in: FindCause
) -> CauseReport | None:
    """Explain attention in blocks: on few columns, where all scenarios have blocks of one size."""
    for one in (first_columns(inputs, min(inputs.tokens.shape[1], MOST_COLUMNS)), inputs):
        cause = cause_in(one, row, blocks)
        if cause is not None:
            return cause
    return None


def _watched(row: TapResult, rows: Sequence[TapResult], mode: str) -> str:
    """Say what of the same pass was compared stage by stage."""
    alike = [r for r in rows if (r.lane, r.scenario, r.mode) == (row.lane, row.scenario, mode)]
    equal = sum(r.passed for r in alike)
    return f"watched stage by stage, the same pass is equal in {equal} of {len(alike)} taps"


def _apart() -> str:
    return (
        "what tells more: --subject blockwise shows attention in blocks tap by tap, "
        "--subject stacked, unrolled or fused holds the layers in that form"
    )
