"""Saved figures judged again under other limits, without running a model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from shlex import join
from typing import Any

from jaxllama.errors import InputError, argument
from parity.comparison import tolerance
from parity.comparison.difference import WorstElement
from parity.comparison.extent import Extent
from parity.comparison.tolerance import LIMITS, Limits
from parity.locate import first_divergence, reading_divergence
from parity.options import lane_of
from parity.result import (
    SCHEMA_VERSION,
    CauseReport,
    Reading,
    ReadingDifference,
    Result,
    TapResult,
    WitnessResult,
)

RESULT_LIMIT = 1 << 30


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
    document = _document(Path(path))
    asked = [_limit(text) for text in limits]
    try:
        rows = [_apply_limits(_row(fields_), asked) for fields_ in document["taps"]]
        witnesses = [
            replace(_fill(WitnessResult, one), limit=LIMITS[one["lane"]].witness_limit(one["mode"]))
            for one in document["witnesses"]
        ]
        reading = _reading(document.get("reading"))
        first = reading_divergence(reading) or first_divergence(rows)
        before = document["first_divergence"]
        same = (
            first is not None
            and before is not None
            and (first.row.tap, first.row.lane) == (before["tap"], before["lane"])
        )
        told = document.get("difference") == "computation"  # by its confirmed cause
        if same and first is not None and first.difference == "rounding" and told:
            first = replace(first, difference="computation")
        known = document["cause"] if same else None
        coverage = document["coverage"]
        lanes = list(dict.fromkeys(row.lane for row in rows))
        facts = tolerance.facts(lanes)
        for lane in lanes:
            facts["lanes"][lane] |= {
                mode: _limit_asked(asked, lane, mode, LIMITS[lane]) for mode in ("isolated", "free")
            }
        return Result(
            rows=rows,
            witnesses=witnesses,
            expected=coverage["expected"],
            absent=tuple(coverage["absent"]),
            unmatched=tuple(coverage["unmatched"]),
            first_divergence=first,
            cause=None if known is None else CauseReport.from_dict(known),
            reading=reading,
            inputs=document["inputs"],
            tolerance=facts,
            environment=document["environment"],
            checkpoint=document["checkpoint"],
            command=join(["parity", "recheck", str(path), *(f"--limit={text}" for text in limits)]),
            subject=document.get("subject", "subject"),
            notes=document["notes"],
            not_run=tuple(coverage.get("not_run", ())),
            timing=document["timing"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: not a result of parity run --json: {what}") from error


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


def _reading(document: Mapping[str, Any] | None) -> Reading | None:
    if document is None:
        return None
    differences = tuple(ReadingDifference(**one) for one in document["differences"])
    return Reading(document["fields"], document["tensors"], differences)


def _row(document: Mapping[str, Any]) -> TapResult:
    parts: dict[str, Any] = {
        name: None if document[name] is None else _fill(kind, document[name])
        for name, kind in (("worst", WorstElement), ("extent", Extent))
    }
    row: TapResult = _fill(TapResult, {**document, **parts})
    return row


def _fill(kind: type, document: Mapping[str, Any]) -> Any:
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
