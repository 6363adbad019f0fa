"""What an operator did, solved from its inputs and outputs; any implementation's taps will do.

Shapes: B batch, T queries, S keys, N heads, H head dim, R = H / 2, D model dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from jaxllama.config import LlamaConfig, RopeScaling
from parity.subjects.torch_reference.frequency_table import frequency_table


@dataclass(frozen=True)
class Rotation:
    """How pairs of features were turned.

    Attributes:
        pairing: `half-split` (i with i + H/2) or `interleaved` (2i with 2i + 1).
        turn: unit complex number of each token and pair [B T R].
        residual: what a rotation leaves unexplained, relative.
    """

    pairing: str
    turn: np.ndarray
    residual: float


def rotation(before: np.ndarray, after: np.ndarray) -> Rotation:
    """Return the rotation that turns one tensor into the other.

    Args:
        before: q_proj or k_proj [B T N H].
        after: q_rope or k_rope, same shape.
    """
    found = []
    for pairing in ("half-split", "interleaved"):
        x, y = complex_pairs(before, pairing), complex_pairs(after, pairing)
        turn = (y * x.conj()).sum(2)
        turn = turn / np.maximum(np.abs(turn), np.finfo(np.float64).tiny)
        left = _share(y - x * turn[:, :, None], y)
        found.append(Rotation(pairing, turn, left))
    return min(found, key=lambda one: one.residual)


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    """Return the norm of one array in units of another's."""
    return float(np.linalg.norm(part)) / max(float(np.linalg.norm(whole)), 1e-300)


def complex_pairs(x: np.ndarray, pairing: str) -> np.ndarray:
    """Return features [.. H] as complex numbers [.. R]."""
    x = np.asarray(x, np.float64)
    if pairing == "interleaved":
        return x[..., 0::2] + 1j * x[..., 1::2]
    a, b = np.split(x, 2, axis=-1)
    return a + 1j * b


def frequencies(turn: np.ndarray, positions: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return radians per token of each pair [R] from turns [B T R]; negative is backwards.

    Neighbouring tokens, whose positions differ by one, tell it without ambiguity up to pi.
    """
    step = (np.diff(positions, axis=1) == 1) & valid[:, 1:] & valid[:, :-1]
    turned = turn[:, 1:] * turn[:, :-1].conj()
    if not step.any():
        return np.full(turn.shape[-1], np.nan)
    return np.angle(turned[step].sum(0))


# Turns this far from those of a whole position, as a share of the unit circle, are of none.
_TURN_GAP = 1e-3
_CANDIDATES = 1 << 12


def solve_positions(
    turn: np.ndarray, table: np.ndarray, valid: np.ndarray, highest: int
) -> np.ndarray | None:
    """Return the whole positions [B T] that turns [B T R] are of; 0 on pads.

    Every candidate is held against all pairs at once: fast ones tell neighbours apart, slow ones
    which full turn it is.

    Args:
        turn: unit complex numbers, see `Rotation`.
        table: radians per token of each pair [R].
        valid: which tokens are real [B T].
        highest: largest position to look for.

    Returns:
        None where a token's turn is no whole position's.
    """
    flat = turn[valid]
    best, found = np.full(len(flat), -np.inf), np.zeros(len(flat), np.int64)
    for start in range(0, highest + 1, _CANDIDATES):
        candidates = np.arange(start, min(start + _CANDIDATES, highest + 1))
        likeness = (flat @ np.exp(-1j * np.outer(table, candidates))).real
        at = likeness.argmax(1)
        value = likeness[np.arange(len(flat)), at]
        found = np.where(value > best, candidates[at], found)
        best = np.maximum(best, value)
    if not len(flat) or (1 - best / len(table)).max() > _TURN_GAP:
        return None
    positions = np.zeros(valid.shape, np.int64)
    positions[valid] = found
    return positions


def offset_and_stride(got: np.ndarray, right: np.ndarray) -> tuple[int, float] | None:
    """Return a, b where positions are a + b times the right ones [tokens]; None if no line fits."""
    if len(np.unique(right)) < 2:
        return None
    b, a = np.polyfit(right.astype(np.float64), got.astype(np.float64), 1)
    a, b = round(float(a)), round(float(b), 6)
    return (a, b) if np.array_equal(a + np.rint(b * right), got) else None


@dataclass(frozen=True)
class Frequencies:
    """An angle table, in words.

    Attributes:
        theta: base that its fastest pairs go by.
        scaling: how slower ones depart from it; None if they do not.
        exact: whether theta and scaling give the whole table.
    """

    theta: float
    scaling: RopeScaling | None
    exact: bool


def solve_frequencies(table: np.ndarray, config: LlamaConfig, noise: float = 0.0) -> Frequencies:
    """Return theta and scaling of an angle table [R], with as little changed as possible.

    Args:
        table: radians per token.
        config: what the subject should go by.
        noise: of the table's entries, where it was measured on rotations: radians per token.
    """
    table = np.asarray(table, np.float64)
    close = max(1e-9, 4 * _table_noise(table))

    def fits(theta: float, scaling: RopeScaling | None) -> bool:
        if not (np.isfinite(theta) and theta > 1):
            return False
        made = frequency_table(config.replace(rope_theta=theta, rope_scaling=scaling))
        return bool(np.allclose(table, made, rtol=close, atol=noise))

    exact = _theta(table, config.head_dim)
    with np.errstate(all="ignore"):
        slack = float(config.head_dim / 2 * noise * (1 / abs(table[0]) + 1 / abs(table[1])))
    theta = _tidy(exact, slack)
    linear = max(1 / table[0], 1.0) if table[0] > 0 else np.nan  # measured, it may be just below
    candidates: list[tuple[float, RopeScaling | None]] = [
        (config.rope_theta, None),
        (theta, config.rope_scaling),
        (theta, None),
        *((config.rope_theta, scaling) for scaling in _scalings(table, config)),
        (config.rope_theta, RopeScaling(kind="linear", factor=linear)),
        (theta, RopeScaling(kind="linear", factor=linear)),
        *((theta, scaling) for scaling in _scalings(table, config, theta)),
        (exact, config.rope_scaling),
        (exact, None),
    ]
    for base, scaling in candidates:
        if fits(base, scaling):
            return Frequencies(base, scaling, exact=True)
    return Frequencies(theta, config.rope_scaling, exact=False)


def _table_noise(table: np.ndarray) -> float:
    """Return how far the table's own dtype rounds: float32 tables carry 2^-24."""
    return 2.0**-24 if np.array_equal(table, table.astype(np.float32)) else 1e-12


def _theta(table: np.ndarray, head_dim: int) -> float:
    """Return the base of the two fastest pairs, which no scaling in use tells apart."""
    with np.errstate(all="ignore"):
        return float((table[1] / table[0]) ** (-head_dim / 2))


def _tidy(theta: float, slack: float = 0.0) -> float:
    """Return the nearby round number, if there is one within rounding, or the relative slack."""
    round_one = float(f"{theta:.2g}") if np.isfinite(theta) else theta
    if abs(round_one - theta) <= slack * abs(theta):
        return round_one
    rounded = float(f"{theta:.6g}") if np.isfinite(theta) else theta
    return rounded if abs(rounded - theta) <= 1e-6 * abs(theta) else theta


def _scalings(
    table: np.ndarray, config: LlamaConfig, theta: float | None = None
) -> list[RopeScaling]:
    """Return scalings of one changed field that the table allows."""
    now = config.rope_scaling
    base = config.rope_theta if theta is None else theta
    if not (np.isfinite(base) and base > 1):
        return []
    plain = frequency_table(config.replace(rope_theta=base, rope_scaling=None))
    with np.errstate(all="ignore"):
        factor = _tidy(float(np.max(plain / table)))
    if not np.isfinite(factor) or factor < 1:
        return []
    if now is None or now.kind != "llama3":
        usual = RopeScaling(
            kind="llama3",
            factor=factor,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        )
        return [usual]
    lows, highs = {0.5, 1.0, 2.0, 3.0}, {2.0, 3.0, 4.0, 8.0, 16.0, 32.0}
    contexts = {2**n for n in range(8, 20)}
    low, high, context = (
        now.low_freq_factor,
        now.high_freq_factor,
        now.original_max_position_embeddings,
    )
    assert low is not None and high is not None and context is not None
    with np.errstate(all="ignore"):
        blend = (table / plain - 1 / now.factor) / (1 - 1 / now.factor)
    for r in np.flatnonzero((blend > 1e-6) & (blend < 1 - 1e-6)):
        waves = context * plain[r] / (2 * np.pi)
        lows.add(_tidy(float((waves - blend[r] * high) / (1 - blend[r]))))
        highs.add(_tidy(float((waves - low) / blend[r] + low)))
        solved = (blend[r] * (high - low) + low) * 2 * np.pi / plain[r]
        contexts.add(round(float(solved)))
    return [
        replace(now, factor=factor),
        *(replace(now, low_freq_factor=x) for x in sorted(lows) if 0 < x < high),
        *(replace(now, high_freq_factor=x) for x in sorted(highs) if x > low),
        *(replace(now, original_max_position_embeddings=x) for x in sorted(contexts) if x > 0),
    ]


def head_map(outputs: np.ndarray, by_kv_head: np.ndarray) -> tuple[list[int], float]:
    """Return the kv head that each query head reads, and what that leaves, relative.

    Args:
        outputs: of each query head [N ..].
        by_kv_head: what each would give with each kv head [N K ..].
    """
    gap = by_kv_head - outputs[:, None]
    gaps = np.sqrt((gap.reshape(*gap.shape[:2], -1) ** 2).sum(-1))
    chosen = gaps.argmin(1)
    return [int(k) for k in chosen], _share(gaps[np.arange(len(chosen)), chosen], outputs)


def rounded_through(values: np.ndarray, wanted: np.ndarray) -> str | None:
    """Return the dtype that makes `wanted` of `values`, if one does: float16, bfloat16, float32."""
    import ml_dtypes

    for name, dtype in (
        ("float32", np.float32),
        ("float16", np.float16),
        ("bfloat16", ml_dtypes.bfloat16),
    ):
        with np.errstate(over="ignore"):
            made = values.astype(dtype).astype(np.float64)
        if np.allclose(made, wanted, rtol=1e-9, atol=0) and not np.array_equal(values, wanted):
            return name
    return None


def scaling_in_words(scaling: RopeScaling | None) -> str:
    """Name a scaling by its numbers: `llama3 8/1/4/8192`."""
    if scaling is None:
        return "none"
    if scaling.kind == "linear":
        return f"linear {scaling.factor:g}"
    return (
        f"llama3 {scaling.factor:g}/{scaling.low_freq_factor:g}/{scaling.high_freq_factor:g}/"
        f"{scaling.original_max_position_embeddings}"
    )
