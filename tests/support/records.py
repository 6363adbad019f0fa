"""Rows, results and scripted implementations, for tests of what judges and prints them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from parity.comparison.difference import WorstElement
from parity.inputs import Inputs
from parity.locate import first_divergence
from parity.result import Result, TapResult, WitnessResult
from parity.subjects.base import Arrays, stage_taps
from parity.taps import AXES, split_name

SIZES = {"B": 2, "T": 5, "S": 5, "N": 4, "K": 2, "H": 6, "R": 3, "D": 7, "F": 11, "V": 13}
LAYERS = 2


def row(tap: str, *, failed: bool = False, **changes: Any) -> TapResult:
    """Return a tap's row; `failed` puts its rho over the limit."""
    rho = 1e6 if failed else 0.5
    fields: dict[str, Any] = {
        "tap": tap,
        "lane": "f64",
        "scenario": "causal",
        "mode": "free",
        "step": 0,
        "dtype": "float64",
        "error": rho * 1e-15,
        "noise": 1e-15,
        "rho": rho,
        "limit": 32.0,
        "peak_rho": rho,
        "peak_limit": 64.0,
        "worst": WorstElement({"B": 0, "T": 3, "D": 5}, 1.5, 1.25) if failed else None,
    }
    return TapResult(**(fields | changes))


def witness_row(**changes: Any) -> WitnessResult:
    """Return a witness that agrees."""
    fields: dict[str, Any] = {
        "witness": "torch",
        "lane": "f64",
        "scenario": "causal",
        "mode": "free",
        "is_gold": False,
        "compared": 42,
        "absent": (),
        "unmatched": (),
        "worst_tap": "embed",
        "rho": 0.5,
        "limit": 8.0,
        "error": 1e-15,
        "subject_gap": 1e-14,
    }
    return WitnessResult(**(fields | changes))


def result(rows: Sequence[TapResult], **changes: Any) -> Result:
    """Return a result of these rows, located."""
    fields: dict[str, Any] = {
        "rows": list(rows),
        "witnesses": [witness_row()],
        "expected": 42,
        "absent": (),
        "unmatched": (),
        "first_divergence": first_divergence(rows),
        "inputs": [{"scenario": "causal", "sha256": "0" * 64}],
        "tolerance": {"rule": "rho"},
        "environment": {
            "backend": "cpu",
            "device": "cpu",
            "versions": {"jax": "1.2.3"},
            "matmul_precision": {
                "in_force": "highest",
                "float32_at_highest": "float32",
                "float32_at_default": "tf32",
            },
        },
        "checkpoint": {},
        "command": "parity run tiny",
        "subject": "jaxllama",
    }
    return Result(**(fields | changes))


def scripted_inputs() -> Inputs:
    """Return two causal rows of five tokens, the second with a pad at its end."""
    batch, columns = SIZES["B"], SIZES["T"]
    valid = np.ones((batch, columns), bool)
    valid[1, -1] = False
    causal = np.tril(np.ones((columns, columns), bool))
    return Inputs(
        name="scripted",
        tokens=np.zeros((batch, columns), np.int32),
        positions=np.tile(np.arange(columns, dtype=np.int32), (batch, 1)),
        valid=valid,
        mask=causal & valid[:, :, None] & valid[:, None, :],
    )


def _values(name: str, inputs: Inputs, noise: float, seed: int) -> np.ndarray:
    kind, _ = split_name(name)
    if kind == "mask":
        return inputs.mask
    if kind == "positions":
        return inputs.positions
    sizes = SIZES | {"B": len(inputs.tokens)}
    shape = tuple(sizes[axis] for axis in AXES[kind])
    exact = np.random.default_rng(sum(name.encode())).standard_normal(shape)
    if kind == "layers.attn_probs":
        exact = np.where(inputs.mask[:, None], np.exp(exact), 0.0)
        return exact / np.maximum(exact.sum(-1, keepdims=True), 1e-300)
    return exact * (1 + noise * np.random.default_rng(seed).uniform(-1, 1, shape))


class Scripted:
    """An implementation whose taps are made up: those of every other, and noise.

    Args:
        name: how reports call it.
        noise: relative size of its deviations, and their seed.
        change: called with every stage's taps before they are handed over.
        absent: tap kinds it leaves out and says so.
    """

    def __init__(
        self,
        name: str,
        *,
        noise: float = 0.0,
        seed: int = 0,
        change: Callable[[Arrays], None] = lambda taps: None,
        absent: frozenset[str] = frozenset(),
        can_force: bool = True,
    ) -> None:
        self.name, self.dtype, self.internal_dtype = name, "f64", "f64"
        self.noise, self.seed = noise, seed
        self.change, self.absent, self.can_force = change, absent, can_force
        self.forces: list[Mapping[str, np.ndarray] | None] = []

    def start(self, inputs: Inputs) -> ScriptedRun:
        return ScriptedRun(self, inputs)

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> ScriptedRun:
        return ScriptedRun(self, inputs, chunks)


class ScriptedRun:
    """One pass, whole or, with `chunks`, cut into calls of so many columns."""

    def __init__(
        self, owner: Scripted, inputs: Inputs, chunks: Sequence[int] | None = None
    ) -> None:
        self._owner, self._inputs, self._stage = owner, inputs, 0
        sizes = [inputs.tokens.shape[1]] if chunks is None else chunks
        self._stops = np.cumsum([0, *sizes]).tolist()

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        owner, (call, stage) = self._owner, divmod(self._stage, LAYERS + 2)
        owner.forces.append(force)
        taps = {
            name: self._cut(name, _values(name, self._inputs, owner.noise, owner.seed), call)
            for name in stage_taps(stage, LAYERS)
            if split_name(name)[0] not in owner.absent
        }
        owner.change(taps)
        self._stage += 1
        return taps

    def _cut(self, name: str, values: np.ndarray, call: int) -> np.ndarray:
        """Return a call's columns of a tap, and the keys up to its end."""
        axes, start, stop = AXES[split_name(name)[0]], *self._stops[call : call + 2]
        places = {"T": slice(start, stop), "S": slice(stop)}
        return values[tuple(places.get(axis, slice(None)) for axis in axes)]
