"""Judging what has been saved: `parity.compare` two captures, `parity.recheck` a result.

NumPy and safetensors alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from shlex import join
from typing import Any

from jaxllama.errors import InputError
from parity.comparison import tolerance
from parity.comparison.difference import WorstElement
from parity.comparison.extent import Extent
from parity.comparison.tolerance import LIMITS, Limits
from parity.locate import first_divergence
from parity.lockstep.comparator import PassResult
from parity.lockstep.engine import run_lockstep
from parity.lockstep.participants import Participant
from parity.result import SCHEMA_VERSION, Result, TapRow, WitnessRow
from parity.subjects.traces import TraceSubject
from parity.taps import expected_names
from parity.trace import Trace, read_capture

RESULT_LIMIT = 1 << 30


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
    theirs, ours = _by_run(reference), _by_run(subject)
    primary = {run: _one(traces, subject) for run, traces in ours.items()}
    runs = [run for run in primary if run in theirs]
    _check_comparable(primary, theirs, runs, (Path(subject), Path(reference)))
    records = [_compared(primary[run], run, theirs) for run in runs]
    rows = [row for record in records for row in record.rows]
    first = primary[runs[0]].info
    alone = [" ".join(run) for run in primary if run not in theirs]
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
        witnesses=[row for record in records for row in record.witnesses],
        expected=len(expected_names(first.layers, cache=any(run[2] == "decode" for run in runs))),
        absent=first.absent,
        unmatched=tuple(sorted(set(alone).union(*(record.unmatched for record in records)))),
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
        notes=notes,
        timing={"subject_s": sum(primary[run].info.seconds for run in runs)},
        snapshots=[snapshot for record in records for snapshot in record.snapshots],
    )


Run = tuple[str, str, str]


def _by_run(directory: str | Path) -> dict[Run, list[Trace]]:
    found: dict[Run, list[Trace]] = {}
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
    ours: Mapping[Run, Trace],
    theirs: Mapping[Run, list[Trace]],
    runs: Sequence[Run],
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
                "it with --dtype f64 too"
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
            if (a.layers, a.chunks) != (b.layers, b.chunks):
                problems.append(f"{said}: {other.path.name} has other layers or decoding steps")
    if problems:
        raise InputError(
            "captures that cannot be compared:\n  " + "\n  ".join(dict.fromkeys(problems))
        )


def _compared(subject: Trace, run: Run, theirs: Mapping[Run, list[Trace]]) -> PassResult:
    lane, _, mode = run
    f64_run: Run = ("f64", *run[1:])
    truth = _one(theirs[f64_run], theirs[f64_run][0].path.parent)
    f64_reference = TraceSubject([truth])
    participants = [Participant(TraceSubject([subject]), frozenset({"subject"}), (mode,))]
    narrow = (
        theirs.get(("f32", *run[1:]), []) if lane == "f64" else []
    )  # as `participants_for` has it
    participants += [
        Participant(TraceSubject([one]), frozenset({"interior"}), (mode,)) for one in narrow
    ]
    for trace in theirs[run]:
        if narrow and trace.info.role == "variant":
            continue
        roles = {"variant"} if lane != "f64" or trace.info.role == "variant" else {"gold"}
        # What is the noise cannot be held to it as well.
        if trace.info.role == "subject" and (lane == "f64" or len(theirs[run]) > 1):
            roles.add("witness")
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


def recheck(path: str | Path, *, limits: Sequence[str] = ()) -> Result:
    """Comparator saved figures again under other limits, or those of this version.

    What no tolerance excuses (a shape, a mask, NaN) stays a failure. Noise is what the run found:
    the envelope of orders and the probe of products are in the saved figures, and belong to the
    reference, which is not run here.

    Args:
        path: of what `parity run --json` wrote.
        limits: on rho, each `NUMBER`, `DTYPE=NUMBER` or `DTYPE.MODE=NUMBER`, the last that fits
            counting: `f32.isolated=3`. MODE is `isolated` or `free`, which stands for all others.
            The limit for the largest single element moves with it.

    Raises:
        InputError: not such a file, or a limit that cannot be read.
    """
    document = _document(Path(path))
    asked = [_limit(text) for text in limits]
    try:
        rows = [_judged(_row(fields_), asked) for fields_ in document["taps"]]
        witnesses = [
            replace(_filled(WitnessRow, one), limit=LIMITS[one["lane"]].witness_limit(one["mode"]))
            for one in document["witnesses"]
        ]
        first, before = first_divergence(rows), document["first_divergence"]
        same = (
            first and before and (first.row.tap, first.row.lane) == (before["tap"], before["lane"])
        )
        coverage = document["coverage"]
        lanes = list(dict.fromkeys(row.lane for row in rows))
        facts = tolerance.facts(lanes)
        for lane in lanes:
            facts["lanes"][lane] |= {
                mode: _asked(asked, lane, mode, LIMITS[lane]) for mode in ("isolated", "free")
            }
        return Result(
            rows=rows,
            witnesses=witnesses,
            expected=coverage["expected"],
            absent=tuple(coverage["absent"]),
            unmatched=tuple(coverage["unmatched"]),
            first_divergence=first,
            cause=document["cause"] if same else None,
            inputs=document["inputs"],
            tolerance=facts,
            environment=document["environment"],
            checkpoint=document["checkpoint"],
            command=join(["parity", "recheck", str(path), *(f"--limit={text}" for text in limits)]),
            notes=document["notes"],
            timing=document["timing"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: not a result of parity run --json: {what}") from error


def _thin(
    theirs: Mapping[Run, Sequence[Trace]], runs: Sequence[Run], reference: str | Path
) -> list[str]:
    """Say at which dtypes a single run has to tell the noise."""
    single = dict.fromkeys(run[0] for run in runs if run[0] != "f64" and len(theirs[run]) < 2)
    return [
        f"{reference} holds one run alone at {dtype}: its error is taken for the noise, and it is "
        "no witness itself; a capture of --subject torch holds two, give that second"
        for dtype in single
    ]


def _document(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > RESULT_LIMIT:
            raise InputError(f"{path}: longer than {RESULT_LIMIT} bytes")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        said = "empty" if not path.stat().st_size else f"not JSON, or cut short: {error}"
        raise InputError(f"{path}: {said}; write it again by parity run --json") from error
    if not isinstance(document, dict):
        raise InputError(
            f"{path}: a {type(document).__name__}, expected what parity run --json writes"
        )
    version = document.get("schema_version")
    if not isinstance(version, str) or version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise InputError(
            f"{path}: schema_version {version!r}, expected {SCHEMA_VERSION.split('.')[0]}.x of "
            "parity run --json"
        )
    return document


def _row(document: Mapping[str, Any]) -> TapRow:
    parts: dict[str, Any] = {
        name: None if document[name] is None else _filled(kind, document[name])
        for name, kind in (("worst", WorstElement), ("extent", Extent))
    }
    row: TapRow = _filled(TapRow, {**document, **parts})
    return row


def _filled(kind: type, document: Mapping[str, Any]) -> Any:
    """Build a record from its JSON, which knows no tuples and only finite figures.

    A field with a default may be missing: earlier documents of this version lack it.
    """
    known = [
        one
        for one in fields(kind)
        if one.name in document or (one.default, one.default_factory) == (MISSING, MISSING)
    ]
    return kind(**{one.name: _figure(document[one.name]) for one in known})


def _figure(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _figure(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(value)
    return float(value) if value in ("nan", "inf", "-inf") else value


def _judged(row: TapRow, asked: Sequence[tuple[str, str, float]]) -> TapRow:
    if row.mode == "probe":
        return row
    limit = _asked(asked, row.lane, "free" if row.chained else row.mode, LIMITS[row.lane])
    return replace(row, limit=limit, peak_limit=tolerance.PEAK_ALLOWANCE * limit)


def _asked(
    asked: Sequence[tuple[str, str, float]], lane: str, mode: str, otherwise: Limits
) -> float:
    kind = "isolated" if mode == "isolated" else "free"
    fitting = [rho for l, m, rho in asked if l in ("", lane) and m in ("", kind)]  # noqa: E741
    return fitting[-1] if fitting else otherwise.rho(mode)


def _limit(text: str) -> tuple[str, str, float]:
    """Read `NUMBER`, `DTYPE=NUMBER` or `DTYPE.MODE=NUMBER`."""
    where, _, number = text.rpartition("=")
    lane, _, mode = where.partition(".")
    try:
        rho = float(number)
    except ValueError:
        rho = math.nan
    if lane not in ("", *LIMITS) or mode not in ("", "isolated", "free") or not rho > 0:
        raise InputError(
            f"--limit {text}: expected a number above 0, after DTYPE= or DTYPE.MODE= if it is not "
            f"for all; DTYPE of {', '.join(LIMITS)}, MODE isolated or free"
        )
    return lane, mode, rho
