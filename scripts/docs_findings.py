"""Plant every fault that has a page, let parity find it, and keep what the page's picture shows.

    python scripts/docs_findings.py [causes] [health] [figures] [--only ID ...]

Writes `causes.json`, `health.json` and `figures.json` (those of `tiny` as it is) in
`docs/site/findings`, less than 2 kB an entry, which `make docs` draws. Causes are planted by the
selftest's faults, health's findings by the models made to fail of the tests. All of it takes some 8
minutes of a processor; it is run when a cause, a rule of health or a picture is added.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import jax
import jax.numpy as jnp
import numpy as np
from docsite.drawing import HIDDEN, LEAKED, LOST, SEEN
from docsite.health_examples import EXAMPLES, HealthExample, figure_of
from docsite.health_examples import LENGTH as LENGTH_OF_TEXT

import parity
from jaxllama import compilation_cache
from jaxllama import model as llama
from parity.comparison import attention_image
from parity.comparison.snapshot import PassSnapshot
from parity.diagnose.cause import catalogue
from parity.health.metrics.attention import HeadFigures
from parity.health.metrics.gradients import GradientFigures
from parity.health.metrics.states import StateFigures
from parity.report.wording import brief
from parity.result import Result, TapResult
from parity.selftest import faults
from parity.selftest.fault import Fault, FaultySubject, in_layer
from parity.selftest.faults.masks import built
from parity.selftest.harness import LENGTH
from parity.selftest.models import checkpoint
from parity.taps import SETUP_TAPS, flow_key, split_name

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "site" / "findings"
# Faults of a cause that are tried until one is named; powers of ten that a picture shows.
TRIES, MOST = 4, 14.0
CONFIRMED = 2
_STATES = {
    attention_image.VISIBLE: SEEN,
    attention_image.HIDDEN: HIDDEN,
    attention_image.LEAKED: LEAKED,
    attention_image.LOST: LOST,
}


def planted(cause: str) -> list[Fault]:
    """Return faults of which a cause ought to be named, the plainest first."""
    found = [fault for fault in faults.catalogue() if fault.cause == cause]
    found += [fault for fault in _further() if fault.cause == cause]
    plain = [f for f in found if not f.scenario.startswith(("repeated", "vocabulary"))]
    return sorted(plain, key=lambda f: (f.lane != "f64", f.scenario != "causal"))


def _further() -> Iterator[Fault]:
    """Yield faults of causes that the selftest has none for: what no name fits."""

    def scattered(mask: np.ndarray, _: Any) -> np.ndarray:
        hidden = np.random.default_rng(0).random(mask.shape) < 0.2
        return mask & ~(hidden & ~np.eye(mask.shape[-1], dtype=bool))

    yield Fault(
        "docs",
        "keys hidden here and there",
        "one in five",
        "layers.0.attn_probs",
        "mask-differs",
        patches=built(scattered),
        flagged=("mask",),
    )
    yield _in_mlp("the MLP's gate in bfloat16", "value-rounded", _rounded_gate)
    yield _in_mlp("SiLU of both halves of the MLP", "operator-edited", _silu_twice)


def _rounded_gate(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.silu(gate).astype(jnp.bfloat16).astype(up.dtype) * up


def _silu_twice(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.silu(gate) * jax.nn.silu(up)


def _in_mlp(kind: str, cause: str, act: Callable[[jax.Array, jax.Array], jax.Array]) -> Fault:
    def call(self: Any, x: jax.Array, tap: Any) -> jax.Array:
        gate, up = tap("gate_proj", self.gate_proj(x)), tap("up_proj", self.up_proj(x))
        return tap("down_proj", self.down_proj(tap("mlp_act", act(gate, up))))

    patches = in_layer(1, lambda _: [(llama.MLP, "__call__", call)])
    return Fault("docs", kind, "layer 1", "layers.1.mlp_act", cause, patches=patches)


def run(fault: Fault) -> Result:
    """Compare a subject with a fault, as `parity run` does."""
    scenario, _, length = fault.scenario.partition("@")
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        subject = FaultySubject(checkpoint(fault.model), fault.lane, fault)
    modes = ("free", "isolated") if fault.mode == "free" else (fault.mode,)
    return parity.run(
        checkpoint(fault.model),
        subject={fault.lane: subject},
        dtypes=fault.lane,
        modes=modes,
        scenarios=scenario,
        length=int(length or LENGTH),
    )


def finding(fault: Fault, result: Result) -> dict[str, Any]:
    """Return what a page shows of a result."""
    first = result.first_divergence
    assert first is not None
    said = [line for line in brief(result) if not line.startswith("again:")]
    rows = [r for r in result.rows if (r.lane, r.scenario) == (first.row.lane, first.row.scenario)]
    own = {"free", "decode", "grad"}
    taps = sorted(
        {r.tap for r in rows if r.mode in own or r.mode == "isolated"},
        key=lambda tap: (split_name(tap)[0] not in SETUP_TAPS, flow_key(tap)),
    )
    document: dict[str, Any] = {
        "fault": f"{fault.kind}: {fault.variant}",
        "said": said,
        "taps": taps,
        "own": [_worst(r for r in rows if r.tap == tap and r.mode in own) for tap in taps],
        "alone": [_worst(r for r in rows if r.tap == tap and r.mode == "isolated") for tap in taps],
    }
    masks = next((m for s in result.snapshots if (m := _mask(s)) is not None), None)
    return document | ({} if masks is None else {"mask": masks})


def _worst(rows: Iterator[TapResult]) -> float | None:
    """Return how far a tap is from its limit, as a power of ten; None if it was not run."""
    found = [_power(row) for row in rows]
    return max(found) if found else None


def _power(row: TapResult) -> float:
    share = max(row.rho / row.limit, row.peak_rho / row.peak_limit)
    if not math.isfinite(share):
        return MOST
    power = round(math.log10(max(share, 1e-3)), 1)
    return max(power, 0.3) if not row.passed else min(power, -0.1)


def _mask(snapshot: PassSnapshot) -> dict[str, Any] | None:
    """Return the row of the mask with most wrong cells: what each cell does, a letter each."""
    observed = snapshot.observed_mask
    seen = None if observed is None else observed.cells
    if snapshot.reported_mask is not None and (seen is None or not _wrong(seen).any()):
        live = snapshot.mask.any(2, keepdims=True)
        shown = snapshot.reported_mask & live
        seen = attention_image.cell_states(snapshot.mask, shown, ~snapshot.reported_mask)
    if seen is None or not _wrong(seen).any():
        return None
    row = int(_wrong(seen).sum((1, 2)).argmax())
    letters = np.vectorize(lambda state: _STATES.get(int(state), HIDDEN))(seen[row])
    return {"row": row, "cells": ["".join(line) for line in letters]}


def _wrong(cells: np.ndarray) -> np.ndarray:
    return np.isin(cells, (attention_image.LEAKED, attention_image.LOST))


def _shown(cause: str, result: Result) -> int:
    """Return whether a cause is named (1) and confirmed (2)."""
    named = result.cause
    if named is None or cause not in {named.id, *(one.id for one in named.others)}:
        return 0
    return CONFIRMED if named.confirmed else 1


def causes(only: Sequence[str]) -> dict[str, Any]:
    """Return what is found of a fault of each cause: the first that is confirmed, else named."""
    found = {}
    for cause in catalogue():
        if only and cause not in only:
            continue
        best: tuple[int, Fault, Result] | None = None
        for fault in planted(cause)[:TRIES]:
            result = run(fault)
            shown = _shown(cause, result)
            if best is None or shown > best[0]:
                best = shown, fault, result
            if shown == CONFIRMED:
                break
        if best is not None:
            found[cause] = finding(*best[1:])
        print(cause, *(found[cause]["said"][-1:] if best else ["has no fault"]), flush=True)
    return found


def health(only: Sequence[str]) -> dict[str, Any]:
    """Return what is found of each model made to fail."""
    found = {}
    for rule, example in EXAMPLES.items():
        if not only or rule in only:
            found[rule] = _health(rule, example)
            print(rule, found[rule]["said"], flush=True)
    return found


def _health(rule: str, example: HealthExample) -> dict[str, Any]:
    report = example.check()
    one = next(f for f in report.findings if f.rule == rule)
    values, flagged = figure_of(report, rule, example.figure)
    document = {
        "planted": example.planted,
        "said": f"{one.severity}: {one.message}",
        "figure": example.figure,
        "values": rounded(values),
        "flagged": flagged.astype(int).tolist(),
        "threshold": one.threshold,
    }
    kept = [p for p in report.pictures.flagged if rule in p.rules]
    if kept and example.shows_map:
        document["map"] = {"layer": kept[0].layer, "head": kept[0].head, "cells": _map(kept[0])}
    return document


def rounded(values: np.ndarray) -> list[list[float | None]]:
    """Return values to three digits; None for what is no number."""
    return [[float(f"{v:.3g}") if math.isfinite(v) else None for v in row] for row in values]


def _map(kept: Any) -> list[str]:
    """Return a kept map as digits, letters where a hidden key has weight."""
    codes = np.where(kept.weights >= attention_image.NOTHING, 0, kept.weights).astype(float)
    levels = np.clip(np.round(codes / (attention_image.LEVELS + 2) * 9), 0, 9).astype(int)
    leaked = kept.cells == attention_image.LEAKED
    return [
        "".join("abcdefghij"[v] if bad else str(v) for v, bad in zip(line, wrong, strict=True))
        for line, wrong in zip(levels, leaked, strict=True)
    ]


def figures(only: Sequence[str]) -> dict[str, Any]:
    """Return every figure of health of `tiny`, by layer and head."""
    report = parity.check_health("tiny", length=LENGTH_OF_TEXT)
    found = {}
    for kind in (HeadFigures, StateFigures, GradientFigures):
        for name in (one.name for one in dataclasses.fields(kind)):
            if not only or name in only:
                found[name] = rounded(figure_of(report, "", name)[0])
    return found


def write(name: str, found: dict[str, Any], only: Sequence[str]) -> None:
    """Write findings, one a line; of some alone beside those that are there.

    Most runs have the same taps: they are written once, under a key of their own.
    """
    path = FOLDER / f"{name}.json"
    before = json.loads(path.read_text()) if only and path.exists() else {}
    for one in found.values():
        if isinstance(one, dict) and "taps" in one:
            text = " ".join(one["taps"])
            one["taps"] = f"taps-{hashlib.blake2s(text.encode(), digest_size=3).hexdigest()}"
            before[one["taps"]] = text
    lines = [
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'), ensure_ascii=False)}"
        for key, value in sorted((before | found).items())
    ]
    FOLDER.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> None:
    """Make the findings that are asked for."""
    make = {"causes": causes, "health": health, "figures": figures}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="*", default=[*make], metavar="|".join(make))
    parser.add_argument("--only", nargs="+", default=[], metavar="ID")
    given = parser.parse_args()
    compilation_cache.turn_on()
    for what in given.what:
        write(what, make[what](given.only), given.only)


if __name__ == "__main__":
    main()
