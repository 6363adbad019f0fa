"""parity's own sampler, in NumPy and float64: a row at a time, written to be read.

It shares no code with `jaxllama.sampling`. Random numbers are those that the key schedule of
`jaxllama.generate` promises (a key of the row's seed, folded with the number of the token), made
anew by JAX itself.

Shapes: V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How tokens are chosen; what is None does nothing, and without a temperature it is greedy."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @property
    def gain(self) -> float:
        """By how much an error in a logit grows on its way through penalty and temperature."""
        r = self.repetition_penalty or 1.0
        return max(r, 1 / r) / (self.temperature or 1.0)


GREEDY = Setting()


@dataclass(frozen=True)
class Kept:
    """What penalty, temperature and filters leave of a row of logits.

    Attributes:
        logits: float64; -inf for what was cut away.
        whole: the same before anything was cut away.
        edge: how far, in a logit, the nearest token is from being cut or kept instead; infinite
            where nothing is cut. Rounding of that size may cut another set.
    """

    logits: Float[np.ndarray, " V"]
    whole: Float[np.ndarray, " V"]
    edge: float


def keep(logits: Float[np.ndarray, " V"], setting: Setting, seen: Bool[np.ndarray, " V"]) -> Kept:
    """Return what is drawn from: penalty, temperature, top-k, top-p, min-p, in this order.

    Args:
        logits: the model's.
        setting: what is asked for.
        seen: tokens of the prompt and of the text so far.
    """
    x, edge = logits.astype(np.float64), math.inf
    if (r := setting.repetition_penalty) is not None:
        x = np.where(seen, np.where(x > 0, x / r, x * r), x)
    if setting.temperature is None:
        return Kept(x, x, edge)
    x = x / setting.temperature
    # The most likely first; of equals the one of the lower id.
    ranked = np.lexsort((np.arange(len(x)), -x))
    if (k := setting.top_k) is not None and k < len(x):
        # Equals are told apart by their ids, whatever rounds.
        edge = min(edge, float(x[ranked[k - 1]] - x[ranked[k]]) or math.inf)
        ranked = ranked[:k]
    if (p := setting.top_p) is not None:
        mass = np.exp(x[ranked] - x[ranked[0]])
        reached = np.cumsum(mass) / mass.sum()
        count = int(np.argmax(reached >= p)) + 1 if (reached >= p).any() else len(ranked)
        around = reached[max(0, count - 2) : count]
        edge = min(edge, float(np.abs(np.log(around / p)).min()))
        ranked = ranked[:count]
    if (m := setting.min_p) is not None:
        above = x[ranked] - x[ranked[0]] - math.log(m)
        edge = min(edge, float(np.abs(above).min()))
        ranked = ranked[above >= 0]
    kept = np.full(len(x), -np.inf)
    kept[ranked] = x[ranked]
    return Kept(kept, x, edge)


def surely_kept(
    whole: Float[np.ndarray, " V"], setting: Setting, slack: float
) -> tuple[Bool[np.ndarray, " V"], Bool[np.ndarray, " V"]]:
    """Return what is kept whatever noise does, and what it may let be kept.

    Args:
        whole: after penalty and temperature.
        setting: what is asked for.
        slack: by how much noise may move the difference of two of them.
    """
    size = len(whole)
    k, p, m = setting.top_k or size, setting.top_p or 1.0, setting.min_p or 0.0
    order = np.argsort(-whole, kind="stable")
    x = whole[order]
    mass = np.exp(x - x[0])
    before = np.concatenate([[0.0], np.cumsum(mass)])
    found = []
    for wide in (-slack, slack):
        # Of how many others it is known (wide) or possible (narrow) that they come before.
        ahead = np.searchsorted(-x, -(x + wide), side="left") - (wide < 0)
        kept = ahead < k
        heavier = before[ahead + (wide < 0)] - (mass if wide < 0 else 0.0)
        total = mass[kept].sum()
        if p < 1:
            kept &= (ahead <= 0) | (heavier < p * math.exp(wide) * total)
        if m > 0:
            kept &= x - x[0] >= math.log(m) - wide
        mask = np.zeros(size, bool)
        mask[order] = kept
        found.append(mask)
    return found[0], found[1]


def noise_of_draw(seed: int, number: int, size: int, dtype: np.dtype) -> Float[np.ndarray, " V"]:
    """Return the Gumbel numbers whose sum with the kept logits is largest at the token drawn.

    Args:
        seed: of the row.
        number: which of the row's new tokens is drawn, from 0.
        size: V.
        dtype: of the logits drawn from.
    """
    return gumbel(jax.random.fold_in(jax.random.key(np.uint32(seed)), number), size, dtype)


def gumbel(key: jax.Array, size: int, dtype: np.dtype) -> Float[np.ndarray, " V"]:
    """Return one key's Gumbel numbers."""
    return np.asarray(jax.random.gumbel(key, (size,), jnp.dtype(dtype))).astype(np.float64)
