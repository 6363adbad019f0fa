"""Saved figures judged again under other limits, without running a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import join
from typing import Any

from jaxllama import files
from jaxllama.errors import CheckpointError, InputError, argument
from jaxllama.files import limits as bounds
from parity.comparison import tolerance
from parity.comparison.tolerance import LIMITS, Limits
from parity.coverage import count_runs, count_witnesses, missing_taps
from parity.locate import first_divergence, reading_divergence
from parity.options import lane_of
from parity.records import read_record
from parity.result import (
    SCHEMA_VERSION,
    CauseReport,
    Reading,
    Result,
    TapResult,
    WitnessResult,
    modes_not_run,
)


def recheck(path: str | Path, *, limits: Sequence[str] = ()) -> Result:
    """Judge saved figures again under other limits, or those of this version.

    What no tolerance excuses (a shape, a mask, NaN, a checkpoint read wrong) stays a failure. Noise
    is what the run found: the envelope of orders and the probe of products are in the saved
    figures, and belong to the reference, which is not run here.

    Args:
        path: of what `parity run --json` wrote.
        limits: on rho, each `NUMBER`, `DTYPE=NUMBER` or `DTYPE.MODE=NUMBER`, the last that fits
            counting: `f32.isolated=3`. MODE is `isolated` or `free`, which stands for all others.
            The limit for the largest single element moves with it.

    Raises:
        InputError: not such a file, or a limit that cannot be read.
    """
    saved = _read(Path(path))
    absent, layers = saved.coverage.absent, _layers(saved, str(path))
    left = set() if layers is None else missing_taps(saved.taps, layers, absent)
    asked = [_limit(text) for text in limits]
    rows = [_apply_limits(row, asked) for row in saved.taps]
    witnesses = [
        replace(one, limit=LIMITS[one.lane].witness_limit(one.mode)) for one in saved.witnesses
    ]
    first = reading_divergence(saved.reading) or first_divergence(rows)
    before = saved.first_divergence or {}
    place = (before.get("tap"), before.get("lane"))
    same = first is not None and (first.row.tap, first.row.lane) == place
    told = saved.difference == "computation"  # by its confirmed cause
    if same and first is not None and first.difference == "rounding" and told:
        first = replace(first, difference="computation")
    lanes = list(dict.fromkeys(row.lane for row in rows))
    facts = tolerance.facts(lanes)
    for lane in lanes:
        facts["lanes"][lane] |= {
            mode: _limit_asked(asked, lane, mode, LIMITS[lane]) for mode in ("isolated", "free")
        }
    return Result(
        rows=rows,
        witnesses=witnesses,
        expected=saved.coverage.expected,
        absent=absent,
        unmatched=tuple(sorted({*saved.coverage.unmatched, *left})),
        first_divergence=first,
        cause=saved.cause if same else None,
        reading=saved.reading,
        inputs=saved.inputs,
        tolerance=facts,
        environment=saved.environment,
        checkpoint=saved.checkpoint,
        command=join(["parity", "recheck", str(path), *(f"--limit={text}" for text in limits)]),
        subject=saved.subject,
        notes=saved.notes,
        not_run=_not_run(saved),
        timing=saved.timing,
    )


@dataclass(frozen=True)
class _Coverage:
    expected: int
    compared: int
    absent: tuple[str, ...]
    unmatched: tuple[str, ...]
    not_run: tuple[str, ...] = ()
    # Those of before schema 1.3 lack them, and say too little to be believed.
    runs: dict[str, int] | None = None
    witnesses: dict[str, int] | None = None


# What reports show of the parts that are kept as they are; the rest of them may be anything.
@dataclass(frozen=True)
class _Precision:
    float32_at_highest: str
    float32_at_default: str


@dataclass(frozen=True)
class _Machine:
    line: str


@dataclass(frozen=True)
class _Environment:
    versions: dict[str, str | None]
    backend: str
    device: str
    matmul_precision: _Precision
    machine: _Machine | None = None
    reference: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Checkpoint:
    config: dict[str, Any] | None = None
    subject_config: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Saved:
    """What `parity run --json` writes, as far as it is judged again or shown."""

    taps: list[TapResult]
    witnesses: list[WitnessResult]
    coverage: _Coverage
    first_divergence: dict[str, Any] | None
    cause: CauseReport | None
    inputs: list[dict[str, Any]]
    environment: dict[str, Any]
    checkpoint: dict[str, Any]
    notes: list[str]
    timing: dict[str, float]
    subject: str = "subject"
    difference: str | None = None
    reading: Reading | None = None


def _read(path: Path) -> _Saved:
    """Read a result; refuse one that holds less than it says."""
    saved: _Saved = read_record(_Saved, _document(path), str(path))
    read_record(_Environment, saved.environment, f"{path}.environment")
    read_record(_Checkpoint, saved.checkpoint, f"{path}.checkpoint")
    if reference := saved.environment.get("reference"):
        read_record(_Environment, reference, f"{path}.environment.reference")
    said_lanes = [row.lane for row in saved.taps] + [row.lane for row in saved.witnesses]
    if unknown := {*said_lanes} - {*LIMITS}:
        said = ", ".join(sorted(unknown))
        raise InputError(f"{path}: dtypes {said}: expected {', '.join(LIMITS)}")
    _check_coverage(saved, str(path))
    return saved


def _check_coverage(saved: _Saved, place: str) -> None:
    """Refuse a document that holds other rows than it says, or does not say which it must hold."""
    said, found = saved.coverage, {row.tap for row in saved.taps}
    if said.runs is None or said.witnesses is None:
        raise InputError(
            f"{place}: coverage does not say how many rows each run and witness has, as results do "
            "from schema 1.3 on; write it again by parity run --json"
        )
    held = [("different taps", len(found), said.compared)]
    for wanted, counted in (
        (said.runs, count_runs(saved.taps)),
        (said.witnesses, count_witnesses(saved.witnesses)),
    ):
        names = {**wanted, **counted}
        held += [(f"rows of {n}", counted.get(n, 0), wanted.get(n, 0)) for n in names]
    for what, there, promised in held:
        if there != promised:
            raise _not_written(f"holds {there} {what}, its coverage says {promised}", place)
    if said.expected < said.compared:
        raise _not_written(f"holds {said.compared} taps, {said.expected} were expected", place)
    rows = Counter((row.tap, row.lane, row.scenario, row.mode, row.step) for row in saved.taps)
    if twice := next((" ".join(map(str, one)) for one, n in rows.items() if n > 1), ""):
        raise _not_written(f"holds {twice} twice", place)
    for row in saved.taps:
        if problem := _impossible(row):
            raise _not_written(f"{row.lane} {row.scenario} {row.mode} {row.tap}: {problem}", place)


def _not_written(what: str, place: str) -> InputError:
    return InputError(
        f"{place}: {what}; it is not what was written: write it again by parity run --json"
    )


def _impossible(row: TapResult) -> str:
    """Say which figures no comparison gives; empty where there are none."""
    figures = {name: getattr(row, name) for name in ("error", "noise", "rho", "peak_rho")}
    for name, figure in figures.items():
        if figure < 0:
            return f"{name} {figure:g}, expected 0 or more"
    if math.isfinite(row.rho) and not (math.isfinite(row.error) and math.isfinite(row.noise)):
        return f"error {row.error:g} over noise {row.noise:g} is not rho {row.rho:g}"
    return ""


def _layers(saved: _Saved, place: str) -> int | None:
    """Return how many layers a result's model has; None where it does not say."""
    layers = (saved.checkpoint.get("config") or {}).get("num_hidden_layers")
    if layers is None:
        return None
    if type(layers) is not int or not 0 <= layers <= bounds.TENSORS:
        raise InputError(f"{place}: num_hidden_layers {layers!r:.40}, expected a count")
    return layers


def _not_run(saved: _Saved) -> tuple[str, ...]:
    """Return what was not run: as it says, and the modes that no row is of."""
    said = " ".join(saved.coverage.not_run)
    return (
        *(word for word in modes_not_run(saved.taps, {}) if word not in said),
        *saved.coverage.not_run,
    )


def _document(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:  # which may be a pipe, and say no length
            text = file.read(bounds.RESULT_BYTES + 1)
        if len(text) > bounds.RESULT_BYTES:
            raise InputError(f"{path}: more than {bounds.RESULT_BYTES} bytes are not accepted")
        document = files.parse_object(text, str(path), entries=bounds.RESULT_ENTRIES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except CheckpointError as error:
        said = str(error)
        if what := files.stranger(text).partition(";")[0]:
            said = f"{path}: {f'is {what}' if text else what}"
        raise InputError(f"{said}; write it again by parity run --json") from error
    version = document.get("schema_version")
    if not isinstance(version, str) or version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise InputError(
            f"{path}: schema_version {version!r}, expected {SCHEMA_VERSION.split('.')[0]}.x of "
            "parity run --json"
        )
    if document.get("quality") is not None:
        raise InputError(
            f"{path}: a result of quality, which has no limits to be judged by again; its figures "
            "are in it under quality"
        )
    return document


def _apply_limits(row: TapResult, asked: Sequence[tuple[str, str, float]]) -> TapResult:
    if row.mode == "probe":
        return row
    limit = _limit_asked(asked, row.lane, "free" if row.chained else row.mode, LIMITS[row.lane])
    return replace(row, limit=limit, peak_limit=tolerance.PEAK_ALLOWANCE * limit)


def _limit_asked(
    asked: Sequence[tuple[str, str, float]], lane: str, mode: str, otherwise: Limits
) -> float:
    kind = "isolated" if mode == "isolated" else "free"
    fitting = [rho for l, m, rho in asked if l in ("", lane) and m in ("", kind)]  # noqa: E741
    return fitting[-1] if fitting else otherwise.rho(mode)


def _limit(text: str) -> tuple[str, str, float]:
    """Read `NUMBER`, `DTYPE=NUMBER` or `DTYPE.MODE=NUMBER`."""
    where, equals, number = text.rpartition("=")
    lane, _, mode = where.partition(".")
    lane = lane_of(lane) if lane or equals else ""
    try:
        rho = float(number)
    except ValueError:
        rho = math.nan
    lanes = LIMITS if equals else [""]
    if lane not in lanes or mode not in ("", "isolated", "free") or not 0 < rho < math.inf:
        raise InputError(
            f"{argument('limits', text)}: expected a finite number above 0, after DTYPE= or "
            f"DTYPE.MODE= if it is not for all; DTYPE of {', '.join(LIMITS)}, MODE isolated or free"
        )
    return lane, mode, rho
