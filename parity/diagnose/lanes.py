"""In which dtypes a cause is, where not in all that were run; what is in a narrower than asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from parity.diagnose.cause import catalogue
from parity.diagnose.compare_recording import compare_recording
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.recording import Recording
from parity.inputs import Inputs
from parity.result import CauseReport, TapResult
from parity.subjects.base import Subject
from parity.taps import CACHE_TAPS, SETUP_TAPS, in_flow_order, split_name

# What is in one of these alone is said to be there.
WORDS = {"f64": "float64", "f32": "float32", "bf16": "bfloat16"}
SHORT = {word: lane for lane, word in WORDS.items()}


def narrower(
    recording: Recording, reference: MutatedReference, inputs: Inputs
) -> CauseReport | None:
    """Return that a subject goes on in a narrower dtype than the run's, if that is all its fault.

    Held to what honest implementations do in the dtype that its taps have, it is equal then.

    Args:
        recording: of the subject.
        reference: the truth.
        inputs: its scenario.
    """
    lane = recording.subject.dtype
    shown = [(tap, value.dtype.name) for stage in recording.stages for tap, value in stage.items()]
    narrow = {
        tap: dtype
        for tap, name in shown
        if _is_narrower(dtype := SHORT.get(name, lane), lane) and tap not in SETUP_TAPS
    }
    # What a cache alone holds in fewer bits is a cause of its own, and asks for a stricter trial.
    if all(split_name(tap)[0] in CACHE_TAPS for tap in narrow):
        return None
    tap, *_ = in_flow_order(narrow)
    dtype = narrow[tap]
    as_shown = replace(recording, subject=_OfDtype(recording.subject, dtype))
    if compare_recording(as_shown, reference, inputs).first is not None:
        return None
    held = split_name(tap)[0] in CACHE_TAPS
    cause = catalogue()["cache-dtype" if held else "value-rounded"].cause
    said = f"{tap} is {WORDS[dtype]} in a run in {WORDS[lane]}, and what is computed of it"
    line = f"held to what {WORDS[dtype]} costs, it agrees with the reference in every tap"
    return CauseReport(
        id=cause.id,
        title=cause.title,
        summary=f"{cause.title} ({said})",
        effective=WORDS[dtype],
        configured=WORDS[lane],
        remedy=f"Cast {tap} to the dtype that the model runs in.",
        confirmed=True,
        evidence=[line],
    )


def _is_narrower(dtype: str, lane: str) -> bool:
    lanes = list(WORDS)
    return lanes.index(dtype) > lanes.index(lane)


class _OfDtype:
    """A recorded subject that is held to another dtype; it is not run again."""

    can_force = False

    def __init__(self, subject: Subject, dtype: str) -> None:
        self.name, self.absent, self.dtype = subject.name, subject.absent, dtype
        self.internal_dtype = dtype if dtype != "bf16" else "f32"
        self.start = subject.start


def clean_lanes(row: TapResult, rows: Sequence[TapResult]) -> list[str]:
    """Return the dtypes in which what fails in one passes, tap by tap, the widest first.

    Args:
        row: that failed.
        rows: every tap judged.
    """
    alike = [one for one in rows if (one.scenario, one.mode) == (row.scenario, row.mode)]
    failed = {one.lane for one in alike if not one.passed}
    return [lane for lane in WORDS if lane not in failed and lane in {one.lane for one in alike}]


def said_of_lanes(
    found: CauseReport,
    row: TapResult,
    rows: Sequence[TapResult],
    recorded: Callable[[str], Recording],
) -> CauseReport:
    """Return a confirmed cause with the dtypes that alone have it, if others are free of it.

    That the subject passes in another dtype is not enough, whose noise may hide the cause: there
    the reference with the cause has to differ from it.

    Args:
        found: the cause.
        row: where it shows.
        rows: every tap judged.
        recorded: records the subject of a dtype on the same inputs.
    """
    if not found.confirmed or found.wrong_reference is None or found.wrong_inputs is None:
        return found
    lanes = {one.lane for one in rows if (one.scenario, one.mode) == (row.scenario, row.mode)}
    free = []
    for lane in clean_lanes(row, rows):
        recording = recorded(lane)
        inputs = found.wrong_inputs(recording.inputs, recording.chunks)
        if inputs is None:
            continue
        if compare_recording(recording, found.wrong_reference, inputs).first is not None:
            free.append(lane)
    if not free or lanes - {*free} != {row.lane}:
        return found
    where = f"in {row.lane} alone"
    line = f"{where}: with the same change the reference differs from the subject in "
    return replace(
        found,
        summary=f"{found.summary}; {where}",
        evidence=[*found.evidence, line + " and ".join(WORDS[lane] for lane in free)],
    )
