"""Which precision a subject's float32 products have, whatever order they are summed in.

A row with a single non-zero factor has sums of a single term: every order gives that product,
rounded once. What is further off has rounded a factor: TF32 by thousands of units of roundoff,
three bfloat16 products in place of one by more than a hundred. That holds at any K and on any
machine, so the envelope of orders, which is wide where K is large, hides no narrow product.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, H head dim, D model dim, F mlp dim.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import ml_dtypes
import numpy as np

from jaxllama.config import LlamaConfig
from parity.comparison.tolerance import PROBE_LIMIT, UNIT_ROUNDOFF
from parity.inputs import Inputs
from parity.noise.chains import runs_one_operator
from parity.noise.operators import SummedTap, SummedTaps
from parity.result import TapResult
from parity.subjects.base import Arrays, Subject
from parity.taps import AXES, LAYER_TAPS, OPERANDS, split_name

SCENARIO, MODE = "one-hot", "probe"
# By kind, along which axes exactly one element is not zero.
ONE_HOT = {
    "layers.input_layernorm": "D",
    "layers.q_rope": "H",
    "layers.attn_probs": "S",
    "layers.attn_context": "NH",
    "layers.post_attention_layernorm": "D",
    "layers.mlp_act": "F",
    "norm": "D",
}
# What is computed of these alone.
PRODUCTS = tuple(
    kind for kind, operands in OPERANDS.items() if any(operand in ONE_HOT for operand in operands)
)
# Rows of a tap that are looked at: each shows one column of the weight.
_ROWS = 64

Product = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _bfloat16(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def _tfloat32(x: np.ndarray) -> np.ndarray:
    """Keep the 10 mantissa bits that tensor cores keep, ties away from zero."""
    bits = np.ascontiguousarray(x, np.float32).view(np.int32)
    return ((bits + 0x1000) & ~np.int32(0x1FFF)).view(np.float32)


def _exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(a.astype(np.float64) @ b.astype(np.float64).swapaxes(-1, -2))


def _three_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multiply the two leading bfloat16 parts of each factor; the smallest product is left out."""
    a_high, b_high = _bfloat16(a), _bfloat16(b)
    a_low, b_low = _bfloat16(a - a_high), _bfloat16(b - b_high)
    return _exact(a_high, b_high) + _exact(a_high, b_low) + _exact(a_low, b_high)


# What narrow products give, by the precision's name in `parity.runner.precision`.
NARROW_PRODUCTS: dict[str, Product] = {
    "tfloat32": lambda a, b: _exact(_tfloat32(a), _tfloat32(b)),
    "bfloat16": lambda a, b: _exact(_bfloat16(a), _bfloat16(b)),
    "bfloat16_3x": _three_products,
    "float16": lambda a, b: _exact(*(x.astype(np.float16).astype(np.float32) for x in (a, b))),
}


def probe_products(
    subject: Subject, inputs: Inputs, summed: SummedTaps, config: LlamaConfig
) -> list[TapResult]:
    """Return a row for every product of a subject whose factors it can be given.

    Args:
        subject: in float32; one that cannot be forced shows nothing.
        inputs: any scenario; its tokens do not matter.
        summed: knows the factors of each tap.
        config: of the checkpoint.

    Returns:
        Rows whose noise is the unit roundoff. Where one fails, `facts` say by how many units of it
        the tap differs from what each of `NARROW_PRODUCTS` gives: `as_tfloat32`, ...
    """
    if not subject.can_force:
        return []
    run, rows = subject.start(inputs), []
    run.step()
    before: Arrays = {}
    for stage in range(1, config.num_hidden_layers + 2):
        forced = _forced(stage, inputs, config, subject.absent)
        shown = run.step(forced)
        # What is not shown cannot have been replaced, whether the subject says so or not.
        absent = subject.absent | {split_name(name)[0] for name in forced if name not in shown}
        for name, value in shown.items():
            if (
                split_name(name)[0] in PRODUCTS
                and runs_one_operator(name, absent)
                and value.shape == _shape(name, inputs, config)
                and (operator := summed.of(name, before | forced, inputs.mask, "f32"))
            ):
                rows.append(_row(name, value, operator, inputs))
        before = {n: x for n, x in forced.items() if split_name(n)[0] == "layers.output"}
    return rows


def probes_products(modes: Collection[str], lanes: Collection[str]) -> bool:
    """Return whether a run gives operators values, and in float32."""
    return "isolated" in modes and "f32" in lanes


def notes(rows: Sequence[TapResult], lanes: Collection[str]) -> list[str]:
    """Return what must be said of the float32 products that were not probed."""
    probed = {split_name(row.tap)[0] for row in rows if row.mode == MODE}
    missing = [kind.removeprefix("layers.") for kind in PRODUCTS if kind not in probed]
    if "f32" not in lanes or not missing:
        return []
    which = f": {', '.join(missing)}" if probed else ""
    return [
        f"the precision of float32 products was not probed{which}; that takes --mode isolated, and "
        "a subject that names a product and its factors and can be given these"
    ]


def _shape(name: str, inputs: Inputs, config: LlamaConfig) -> tuple[int, ...]:
    c, (B, T) = config, inputs.tokens.shape
    lengths = {"B": B, "T": T, "S": T, "N": c.num_attention_heads, "K": c.num_key_value_heads}
    lengths |= {"H": c.head_dim, "D": c.hidden_size, "F": c.intermediate_size, "V": c.vocab_size}
    return tuple(lengths[axis] for axis in AXES[split_name(name)[0]])


def _forced(
    stage: int, inputs: Inputs, config: LlamaConfig, absent: frozenset[str]
) -> dict[str, np.ndarray]:
    """Return values for all that a stage computes with, those of `ONE_HOT` with one element a row.

    All have as many significant bits as float32 holds: rounding a factor changes it.
    """
    rng = np.random.default_rng(stage)
    head = stage == config.num_hidden_layers + 1
    names = ["norm"] if head else [f"layers.{stage - 1}.{name}" for name in LAYER_TAPS]
    forced = {}
    for name in names:
        kind, _ = split_name(name)
        if kind in absent:
            continue
        value = rng.uniform(0.5, 1.0, _shape(name, inputs, config))
        if kind in ONE_HOT:
            value = _one_hot(value, ONE_HOT[kind], inputs)
        # In float64, as the reference's are: nothing is compiled anew for another dtype.
        forced[name] = value.astype(np.float32).astype(np.float64)
    return forced


def _one_hot(value: np.ndarray, axes: str, inputs: Inputs) -> np.ndarray:
    """Leave one element of each row; rows go through the places in turn."""
    if axes == "S":  # the first or the last key that a query sees
        mask = inputs.mask
        first, last = mask.argmax(-1), mask.shape[-1] - 1 - mask[..., ::-1].argmax(-1)
        place = np.where(np.arange(mask.shape[1]) % 2, first, last)[:, None, :, None]
        return np.where(np.arange(mask.shape[-1]) == place, value, 0.0)
    rows = value.reshape(*value.shape[: -len(axes)], -1)
    width = rows.shape[-1]
    turn = np.arange(rows[..., 0].size).reshape(*rows.shape[:-1], 1)
    # A step near the golden section, so that few rows are spread over all places.
    place = turn * max(1, round(0.618 * width)) % width
    return np.where(np.arange(width) == place, rows, 0.0).reshape(value.shape)


def _row(name: str, value: np.ndarray, operator: SummedTap, inputs: Inputs) -> TapResult:
    maps = AXES[split_name(name)[0]] == "BNTS"
    heads = value.shape[1] if maps else 1
    valid = np.broadcast_to(inputs.valid[:, None], (len(value), heads, inputs.valid.shape[1]))
    rows = np.flatnonzero(valid)
    rows = rows[np.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).astype(int)]
    seen = value.reshape(valid.size, -1)[rows].astype(np.float64)
    cells = np.ones(seen.shape, bool)
    if maps:
        b, _, t = np.unravel_index(rows, valid.shape)
        cells = inputs.mask[b, t]

    def distance(product: Product) -> np.ndarray:
        """Return by how many units of roundoff the tap differs from a way to multiply."""
        expected = operator.finish(rows, operator.sums(rows, product)).astype(np.float64)
        delta, size = seen - expected, abs(expected)
        if name == "logits":  # a shift of all of them is no difference, nor what it rounds
            delta = delta - np.median(delta, axis=-1, keepdims=True)
            size = np.broadcast_to(size.max(-1, keepdims=True), size.shape)
        # What underflows has fewer bits.
        counts = cells & (size > 2 * np.finfo(np.float32).tiny)
        off = np.abs(delta) / np.where(counts, size, 1.0)
        return np.where(counts, off, 0.0) / UNIT_ROUNDOFF["f32"]

    with np.errstate(all="ignore"):
        off = distance(_exact)
        worst = np.unravel_index(int(np.argmax(off)), off.shape)
        rho = float(off[worst])
        facts = {}
        if not rho <= PROBE_LIMIT:
            facts = {f"as_{n}": float(distance(p).max()) for n, p in NARROW_PRODUCTS.items()}
    return TapResult(
        tap=name,
        lane="f32",
        scenario=SCENARIO,
        mode=MODE,
        step=0,
        dtype=value.dtype.name,
        error=rho * UNIT_ROUNDOFF["f32"],
        noise=UNIT_ROUNDOFF["f32"],
        rho=rho,
        limit=PROBE_LIMIT,
        peak_rho=rho,
        peak_limit=PROBE_LIMIT,
        worst=None,
        facts=facts,
        noise_from="one term",
    )
