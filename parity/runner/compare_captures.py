"""Judging what has been saved: `parity.compare` two captures, `parity.recheck` a result.

NumPy and safetensors alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import join

from jaxllama.errors import InputError, argument, join_problems
from parity.comparison import tolerance
from parity.comparison.tolerance import LIMITS
from parity.coverage import missing_taps
from parity.locate import first_divergence
from parity.lockstep.comparator import PassResult
from parity.lockstep.engine import run_lockstep
from parity.lockstep.participants import Participant, Role
from parity.result import Result, modes_not_run
from parity.subjects.traces import TraceSubject
from parity.taps import expected_names
from parity.trace import NOT_CAPTURED, Trace, read_capture


def compare(subject: str | Path, reference: str | Path) -> Result:
    """Judge one capture by another, without running a model.

    Args:
        subject: directory of the capture under judgement.
        reference: directory of the capture it is held to. Its float64 traces are the reference; its
            traces at the dtype under judgement (for float64 those of float32, if it has any), all
            of them honest, give the noise.

    Returns:
        The result, over every dtype, scenario and mode that both hold.

    Raises:
        InputError: a capture is missing, damaged, of other inputs or other weights, or there is no
            float64 trace to compare with.
    """
    ours = _by_run(subject)
    theirs = {
        run: [replace(trace, is_reference=True) for trace in traces]
        for run, traces in _by_run(reference).items()
    }
    primary = {run: _one(traces, subject) for run, traces in ours.items()}
    runs = [run for run in primary if run in theirs]
    _check_comparable(primary, theirs, runs, (Path(subject), Path(reference)))
    records = [_compare_run(primary[run], run, theirs) for run in runs]
    found = PassResult.join(records)
    rows = found.rows
    first = primary[runs[0]].info
    alone = [" ".join(run) for run in primary if run not in theirs]
    lost = _lost(primary.values(), subject) | _lost(
        (trace for traces in theirs.values() for trace in traces), reference
    )
    held = [primary[run] for run in runs] + [one for run in runs for one in theirs[run]]
    absent = {kind for one in held for kind in one.info.absent}
    expected = expected_names(first.layers, cache=any(run[2] == "decode" for run in runs))
    missing = missing_taps(rows, first.layers, absent)
    notes = [f"{reference} holds no run {run} to compare with" for run in alone]
    notes += [
        f"{subject} holds no run {' '.join(run)}: not judged" for run in theirs if run not in ours
    ]
    notes += _thin(theirs, runs, reference)
    divergence = first_divergence(rows)
    if divergence is not None:
        notes.append(
            "the cause is not looked for here: it needs the checkpoint; "
            + join(["parity", "run", str(first.checkpoint["label"]), "--subject", str(subject)])
        )
    if not rows:
        raise InputError(f"{subject}: shows no tap that {reference} shows")
    return Result(
        rows=rows,
        witnesses=found.witnesses,
        expected=len(expected),
        absent=first.absent,
        unmatched=tuple(sorted({*alone, *lost, *missing, *found.unmatched})),
        first_divergence=divergence,
        inputs=[
            {"scenario": name, "sha256": sha}
            for name, sha in dict.fromkeys((r[1], primary[r].info.inputs_sha256) for r in runs)
        ],
        tolerance=tolerance.facts(list(dict.fromkeys(run[0] for run in runs))),
        environment={
            **first.environment,
            "reference": dict(_one(theirs[runs[0]], reference).info.environment),
        },
        checkpoint=dict(first.checkpoint),
        command=join(["parity", "compare", str(subject), str(reference)]),
        subject=first.subject,
        notes=notes,
        not_run=(
            *modes_not_run(rows, {"isolated": "captures are of whole runs"}),
            *(note for note in first.notes if NOT_CAPTURED in note),
        ),
        timing={"subject_s": sum(primary[run].info.seconds for run in runs)},
        snapshots=found.snapshots,
    )


# Fields of a configuration that move no tap: formats do not all keep them.
OF_TEXTS = ("bos_token_id", "eos_token_ids", "pad_token_id", "max_position_embeddings")

RunKey = tuple[str, str, str]


def _by_run(directory: str | Path) -> dict[RunKey, list[Trace]]:
    found: dict[RunKey, list[Trace]] = {}
    for trace in read_capture(directory):
        found.setdefault(trace.info.run, []).append(trace)
    return {run: found[run] for run in sorted(found, key=lambda r: (list(LIMITS).index(r[0]), r))}


def _one(traces: Sequence[Trace], directory: str | Path) -> Trace:
    judged = [one for one in traces if one.info.role == "subject"]
    if len(judged) != 1:
        names = ", ".join(one.path.name for one in judged) or "none"
        raise InputError(f"{directory}: {names} for {' '.join(traces[0].info.run)}, expected one")
    return judged[0]


def _check_comparable(
    ours: Mapping[RunKey, Trace],
    theirs: Mapping[RunKey, list[Trace]],
    runs: Sequence[RunKey],
    places: tuple[Path, Path],
) -> None:
    """Refuse captures that show nothing about each other; all reasons in one error."""
    if not runs:
        held = "; ".join(
            f"{place} has {', '.join(' '.join(run) for run in captured)}"
            for place, captured in zip(places, (ours, theirs), strict=True)
        )
        raise InputError(f"nothing in common to compare: {held}")
    problems = []
    for run in runs:
        a, said = ours[run].info, " ".join(run)
        f64_reference = theirs.get(("f64", *run[1:]))
        if f64_reference is None:
            problems.append(
                f"{said}: {places[1]} has no float64 run of it to measure noise against; capture "
                f"it with {argument('dtypes', 'f64')} too"
            )
        narrow = theirs.get(("f32", *run[1:]), []) if run[0] == "f64" else []
        for other in [*theirs[run], *(f64_reference or []), *narrow]:
            b = other.info
            if a.inputs_sha256 != b.inputs_sha256:
                problems.append(
                    f"{said}: other inputs, {a.inputs_sha256[:12]} and {b.inputs_sha256[:12]} in "
                    f"{other.path.name}; give both the same prompt and length"
                )
            if a.checkpoint["sha256"] != b.checkpoint["sha256"]:
                problems.append(
                    f"{said}: other weights, {a.checkpoint['sha256'][:12]} of "
                    f"{a.checkpoint['label']} and {b.checkpoint['sha256'][:12]} of "
                    f"{b.checkpoint['label']} in {other.path.name}"
                )
            problems += [
                f"other configurations: {name} {value!r} in {places[0]} and "
                f"{b.checkpoint['config'].get(name)!r} in {places[1]}"
                for name, value in a.checkpoint["config"].items()
                if b.checkpoint["config"].get(name) != value and name not in OF_TEXTS
            ]
            if (a.layers, a.chunks) != (b.layers, b.chunks):
                problems.append(f"{said}: {other.path.name} has other layers or decoding steps")
    if problems:
        raise InputError(
            join_problems("captures that cannot be compared", list(dict.fromkeys(problems)))
        )


def _compare_run(subject: Trace, run: RunKey, theirs: Mapping[RunKey, list[Trace]]) -> PassResult:
    lane, _, mode = run
    f64_run: RunKey = ("f64", *run[1:])
    truth = _one(theirs[f64_run], theirs[f64_run][0].path.parent)
    f64_reference = TraceSubject([truth])
    participants = [Participant(TraceSubject([subject]), frozenset({Role.SUBJECT}), (mode,))]
    narrow = (
        theirs.get(("f32", *run[1:]), []) if lane == "f64" else []
    )  # as `participants_for` has it
    participants += [
        Participant(TraceSubject([one]), frozenset({Role.NOISE_F32}), (mode,)) for one in narrow
    ]
    for trace in theirs[run]:
        if narrow and trace.info.role == "variant":
            continue
        roles = {Role.NOISE} if lane != "f64" or trace.info.role == "variant" else {Role.REFERENCE}
        # What is the noise cannot be held to it as well.
        if trace.info.role == "subject" and (lane == "f64" or len(theirs[run]) > 1):
            roles.add(Role.WITNESS)
        active = f64_reference if trace is truth else TraceSubject([trace])
        participants.append(Participant(active, frozenset(roles), (mode,)))
    return run_lockstep(
        {lane: participants},
        [subject.inputs],
        f64_reference,
        (mode,),
        subject.info.layers,
        chunks=subject.info.chunks,
    )


def _lost(traces: Iterable[Trace], directory: str | Path) -> set[str]:
    """Return the runs that were captured together with these, and are no more there.

    Of a trace that does not say, itself among them, nobody knows what is missing.
    """
    held = list(traces)
    there = {" ".join(trace.info.run) for trace in held}
    captured = {run for trace in held for run in trace.info.together}
    silent = {one.path.name for one in held if " ".join(one.info.run) not in one.info.together}
    return {f"{run} (captured, and missing in {directory})" for run in captured - there} | {
        f"runs captured with {name} (it does not say which; capture {directory} again)"
        for name in silent
    }


def _thin(
    theirs: Mapping[RunKey, Sequence[Trace]], runs: Sequence[RunKey], reference: str | Path
) -> list[str]:
    """Say at which dtypes a single run has to tell the noise."""
    single = dict.fromkeys(run[0] for run in runs if run[0] != "f64" and len(theirs[run]) < 2)
    return [
        f"{reference} holds one run alone at {dtype}: its error is taken for the noise, and it is "
        "no witness itself; a capture of --subject torch holds two, give that second"
        for dtype in single
    ]
