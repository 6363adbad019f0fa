"""Results with pictures, made in milliseconds by scripted implementations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from records import LAYERS, SIZES, Scripted, result, scripted_inputs

from parity.lockstep.engine import run_lockstep
from parity.lockstep.participants import Participant, Role
from parity.result import CauseReport, Experiment, Result
from parity.subjects.base import Arrays

SCRIPT = "<script>document.title='run'</script>"
TOKENS = ["The", " cat", SCRIPT, "\n", '"&\u202e']

CAUSE = CauseReport(
    id="rope-theta",
    title="rope theta is not the config's",
    summary="rope theta is not the config's; effective theta 1e+06, configured 500000",
    confirmed=True,
    effective="theta 1e+06",
    configured="500000",
    evidence=["theta=1e+06 on the reference: ...", "so changed, the reference agrees"],
    experiments=[Experiment("theta=1e+06", "layers.0.q_rope", 1.5, 6e-16)],
    remedy="Read rope_theta from the config.",
)


def leaking(taps: Arrays) -> None:
    """Let head 1 of layer 1 see the future once, and lose a key."""
    probs = taps.get("layers.1.attn_probs")
    if probs is not None:
        wrong = probs.copy()
        wrong[0, 1, 2, 4], wrong[0, 1, 2, 0] = 0.25, 0.0
        taps["layers.1.attn_probs"] = wrong


def rotated(taps: Arrays) -> None:
    """Turn the queries of layer 0."""
    if "layers.0.q_rope" in taps:
        taps["layers.0.q_rope"] = -taps["layers.0.q_rope"]


def pictured(change: Callable[[Arrays], None] = lambda taps: None, **changes: Any) -> Result:
    """Return the result of a scripted run that has been changed so, with its snapshots."""
    participants = [
        Participant(Scripted("s", change=change), frozenset({Role.SUBJECT}), ("free", "isolated"))
    ]
    inputs = replace(scripted_inputs(), name="causal")
    record = run_lockstep(
        {"f64": participants}, [inputs], Scripted("reference"), ("free", "isolated"), LAYERS
    )
    texts = [TOKENS[: SIZES["T"]], TOKENS[::-1][: SIZES["T"]]]
    fields = {"snapshots": record.snapshots, "texts": {"causal": texts}, **changes}
    return result(record.rows, **fields)


def decoded(change: Callable[[Arrays], None] = lambda taps: None) -> Result:
    """Return the result of a scripted run through a cache: three columns, then one by one."""
    participants = [
        Participant(Scripted("s", change=change), frozenset({Role.SUBJECT}), ("decode",))
    ]
    inputs = replace(scripted_inputs(), name="causal")
    reference = Scripted("reference")
    record = run_lockstep(
        {"f64": participants}, [inputs], reference, ("decode",), LAYERS, chunks=[3, 1, 1]
    )
    return result(record.rows, snapshots=record.snapshots, texts={"causal": [TOKENS, TOKENS[::-1]]})


def crowded(side: int, heads: int, layers: int) -> Result:
    """Return a result with more attention maps than one page holds, all of them noise."""
    found = pictured()
    (snapshot,) = found.snapshots
    noise = np.random.default_rng(0)
    sheet = snapshot.sheets[0]
    for layer in range(layers):
        snapshot.sheets[layer] = replace(
            sheet,
            layer=layer,
            heads=tuple(range(heads)),
            weights=noise.integers(2, 253, (heads, 3, side, side)).astype(np.uint8),
            cells=np.zeros((heads, side, side), np.uint8),
            moved=(0.5,) * heads,
        )
    return found
