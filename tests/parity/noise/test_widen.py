"""Raising a floor near an alarm: honest orders pass, worse arithmetic and other meanings do not."""

from __future__ import annotations

from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxllama.checkpoint import tiny
from parity.comparison.reference import ReferenceTap
from parity.comparison.tap import compare_tap
from parity.comparison.tolerance import LIMITS, UNIT_ROUNDOFF
from parity.inputs import Inputs
from parity.lockstep.setup import summed_taps
from parity.noise.envelope import sum_variance
from parity.noise.operators import SummedTap
from parity.noise.orders import TRIALS
from parity.noise.widen import Floor, widened_floor
from parity.scenarios import scenario
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import split_name

SUMMED = (
    "layers.1.input_layernorm",
    "layers.1.q_proj",
    "layers.1.attn_scores",
    "layers.1.attn_probs",
    "layers.1.attn_context",
    "layers.1.down_proj",
    "norm",
    "logits",
)


@cache
def _pass(
    name: str = "right_padded", length: int = 61
) -> tuple[TorchReference, Inputs, dict[str, np.ndarray]]:
    checkpoint = tiny(seed=3, hidden_size=90, intermediate_size=1100, num_hidden_layers=2)
    reference = TorchReference(checkpoint, dtype="f64")
    inputs = scenario(name, lambda t: list(t.encode()), checkpoint.config, length=length)
    run, taps = reference.start(inputs), {}
    for _ in range(4):
        taps |= run.step()
    return reference, inputs, taps


def _operator(name: str, lane: str = "f32", *run: Any) -> tuple[ReferenceTap, SummedTap]:
    reference, inputs, taps = _pass(*run)
    operator = summed_taps(reference).of(name, taps, inputs.mask, lane)
    assert operator is not None
    return ReferenceTap(name, taps[name], inputs.valid, inputs.mask), operator


def _in_order(reference: ReferenceTap, operator: SummedTap, order: str) -> np.ndarray:
    """Return the whole tap, summed in one order."""
    live = np.flatnonzero(reference.live)
    flat = np.zeros((reference.live.size, reference.array.size // reference.live.size))
    flat[live] = operator.finish(live, operator.sums(live, TRIALS[order]))
    return flat.reshape(reference.array.shape).astype(np.float32)


def _widened(
    reference: ReferenceTap, operator: SummedTap, subject: np.ndarray
) -> tuple[float, Floor]:
    """Return the larger share of a limit, over the floor that a lucky machine would measure."""
    found = compare_tap(reference, subject)
    least = np.full(reference.live.shape, UNIT_ROUNDOFF["f32"] / 16)
    limits = LIMITS["f32"].isolated, LIMITS["f32"].peak("isolated")
    floor = widened_floor(Floor(least, least), found, reference, operator, limits)
    shares = [
        float(np.where(reference.live, error / noise / limit, 0.0).max())
        for error, noise, limit in zip(
            (found.relative, found.peak), (floor.norm, floor.peak), limits, strict=True
        )
    ]
    return max(shares), floor


@pytest.mark.parametrize("order", ["serial", "reversed, fused", "blocks of 16", "8 lanes"])
@pytest.mark.parametrize("name", SUMMED)
def test_honest_orders_pass_whatever_was_measured(name: str, order: str) -> None:
    reference, operator = _operator(name)
    share, floor = _widened(reference, operator, _in_order(reference, operator, order))
    assert share <= 0.75, (share, floor.source)


@pytest.mark.parametrize("name", SUMMED)
def test_a_tap_rounded_to_bfloat16_does_not_pass(name: str) -> None:
    reference, operator = _operator(name)
    subject = reference.array.astype(ml_dtypes.bfloat16).astype(np.float32)
    share, _ = _widened(reference, operator, subject)
    assert share > 1


@pytest.mark.parametrize("name", SUMMED)
def test_another_meaning_is_not_even_tried(name: str) -> None:
    reference, operator = _operator(name)
    share, floor = _widened(reference, operator, (reference.array * 1.01).astype(np.float32))
    assert share > 1
    assert floor.source == "order: none"


@pytest.mark.parametrize("scenario_name", ["causal", "windowed"])
@pytest.mark.parametrize(
    ("name", "bits"), [("layers.1.attn_scores", 18), ("layers.1.attn_context", 19)]
)
def test_what_a_query_does_not_see_raises_no_floor(
    name: str, bits: int, scenario_name: str
) -> None:
    """Queries that see few keys of 401: a small fault in them is no matter of the hidden ones."""
    reference, operator = _operator(name, "f32", scenario_name, 401)
    wrong = _in_order(reference, operator, "serial")
    few = (
        (slice(None), slice(None), slice(8))
        if reference.axes == "BNTS"
        else (slice(None), slice(8))
    )
    assert _widened(reference, operator, wrong)[0] <= 0.75
    wrong[few] *= np.float32(1 + 2.0**-bits)
    assert _widened(reference, operator, wrong)[0] > 1


def test_logits_are_widened_in_the_unit_that_they_are_judged_in() -> None:
    """Sizes are those of log-probabilities, and a shift of all logits is no error."""
    reference, operator = _operator("logits")
    serial = _in_order(reference, operator, "serial")
    found = compare_tap(reference, serial)
    least = np.full(reference.live.shape, found.relative[reference.live].max() / 100)
    floor = widened_floor(Floor(least, least), found, reference, operator, (4.0, 6.0))
    ratio = floor.norm[reference.live] / found.relative[reference.live]
    assert 0.5 < np.median(ratio) < 4, ratio


def test_what_passes_easily_is_left_as_measured() -> None:
    reference, operator = _operator("layers.1.q_proj")
    least = np.full(reference.live.shape, 1e-3)
    found = compare_tap(reference, reference.array.astype(np.float32))
    floor = widened_floor(Floor(least, least), found, reference, operator, (4.0, 6.0))
    assert floor.source == "measured"
    assert np.array_equal(floor.norm, least)


def test_equal_terms_pass_by_trial_alone_and_the_order_is_named() -> None:
    K, T = 1900, 3
    reference = ReferenceTap(
        "layers.0.down_proj", np.zeros((1, T, 2)), np.ones((1, T), bool), np.ones((1, T, T), bool)
    )
    x, weight = np.full((T, K), 0.1, np.float32), np.full((2, K), _biased(), np.float32)
    reference.array[...] = (x.astype(np.float64) @ weight.T.astype(np.float64))[None]
    operator = SummedTap(
        lambda rows: (x[None, rows], weight[None]),
        lambda _, sums: sums,
        lambda _, sums, error: error,
    )
    serial = TRIALS["serial"](x[None], weight[None]).reshape(1, T, 2)
    share, floor = _widened(reference, operator, serial)
    assert share <= 1
    assert floor.source.startswith("order: ")
    share, _ = _widened(reference, operator, serial * np.float32(1 + 2**-10))
    assert share > 1


def _biased() -> np.float32:
    """Return the factor whose equal terms err most over the envelope, of some."""
    values = np.linspace(0.5, 1, 40, dtype=np.float32)
    a, b = np.full((1, 1, 1900), 0.1, np.float32), values[None, :, None] * np.ones(1900, np.float32)
    wide = a.astype(np.float64), b.astype(np.float64)
    off = abs(TRIALS["serial"](a, b) - wide[0] @ wide[1].swapaxes(-1, -2))
    return np.float32(values[(off / np.sqrt(sum_variance(*wide))).argmax()])


def test_operators_are_those_of_the_reference() -> None:
    """What is summed here, summed exactly, is the reference's own tap."""
    reference, inputs, taps = _pass()
    summed = summed_taps(reference)
    for name in SUMMED:
        reference, operator = _operator(name)
        rows = np.flatnonzero(reference.live)
        exact = operator.sums(rows, lambda a, b: a.astype(np.float64) @ b.swapaxes(-1, -2))
        found = operator.finish(rows, exact)
        flat = reference.array.reshape(reference.live.size, -1)[rows]
        if reference.axes == "BNTS":
            b, _, t = np.unravel_index(rows, reference.live.shape)
            found, flat = (np.where(inputs.mask[b, t], x, 0) for x in (found, flat))
        assert np.abs(found - flat).max() < 1e-4 * np.abs(flat).max(), name
    assert summed.of("layers.0.q_rope", taps, inputs.mask, "f32") is None
    without = {n: x for n, x in taps.items() if split_name(n)[0] != "layers.mlp_act"}
    assert summed.of("layers.0.down_proj", without, inputs.mask, "f32") is None
