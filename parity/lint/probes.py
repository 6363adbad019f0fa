"""Ask a running attention which mask it obeys, even one that shows no weights.

Identity probe: with slices of the identity for V, an attention's output is its weight matrix.
Perturbation probe: K and V of one key are changed; whatever moves, by a bit, depends on that key.

Letters: B batch, T queries, S keys, N query heads, K kv heads, H head dim.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama import dtypes
from jaxllama.masks import BoundMask, causal, padding, window
from parity.lint.probe_cases import ProbeCase, Probed


def run(probed: Probed, q: Any, k: Any, v: Any, mask: Any) -> np.ndarray:
    """Call an attention with arrays of its dtype and return its output in float64 [B T N H]."""
    given = mask if isinstance(mask, BoundMask) else jax.device_put(mask)
    q, k, v = (jax.device_put(a.astype(dtypes.parse(probed.dtype))) for a in (q, k, v))
    out = probed.call(q, k, v, given)
    return np.asarray(out).astype(np.float64)


def identity_probe(probed: Probed, case: ProbeCase, mask: Any = None) -> np.ndarray:
    """Return the weights an attention really uses, [B N T S], H keys at a time.

    Args:
        probed: the attention.
        case: its q, k and mask; V is replaced.
        mask: given in place of the case's bool mask, to be told the same otherwise.

    Source:
        Linearity in V: out = weights @ V, so V = identity gives the weights themselves.
    """
    mask = case.mask if mask is None else mask
    batch, s, kv_heads, h = case.k.shape
    columns = []
    for start in range(0, s, h):
        v = np.zeros((batch, s, kv_heads, h), np.float32)
        width = min(h, s - start)
        v[:, np.arange(start, start + width), :, np.arange(width)] = 1
        out = run(probed, case.q, case.k, v, mask)
        columns.append(out[..., :width])
    return np.concatenate(columns, -1).swapaxes(1, 2)


def perturbation_probe(probed: Probed, case: ProbeCase, mask: Any = None) -> np.ndarray:
    """Return which keys each output depends on, [B N T S] bool, judged to the bit.

    Each key in turn gets K and V far from its own: scores of some hundred, so that a fill too weak
    to hide such a key is noticed as well.
    """
    mask = case.mask if mask is None else mask
    before = run(probed, case.q, case.k, case.v, mask)
    moved = []
    for key in range(case.k.shape[1]):
        k, v = case.k.copy(), case.v.copy()
        k[:, key] = 150 * k[:, key] + 1
        v[:, key] = -3 * v[:, key] + 1
        after = run(probed, case.q, k, v, mask)
        same = (before == after) | (np.isnan(before) & np.isnan(after))
        moved.append((~same).any(-1))
    return np.stack(moved, -1).swapaxes(1, 2)


def head_map(probed: Probed, case: ProbeCase) -> list[list[int]]:
    """Return which kv heads each query head's output depends on, through K or through V."""
    before = run(probed, case.q, case.k, case.v, case.mask)
    heads = case.q.shape[2]
    used: list[list[int]] = [[] for _ in range(heads)]
    for kv_head in range(case.k.shape[2]):
        moved = np.zeros(heads, bool)
        for which in ("k", "v"):
            arrays = {"k": case.k.copy(), "v": case.v.copy()}
            arrays[which][:, :, kv_head] = 2 - arrays[which][:, :, kv_head]
            after = run(probed, case.q, arrays["k"], arrays["v"], case.mask)
            moved |= (before != after).any((0, 1, 3))
        for head in np.flatnonzero(moved):
            used[head].append(kv_head)
    return used


def gradients(probed: Probed, case: ProbeCase) -> dict[str, np.ndarray]:
    """Return the gradients of the outputs' squared sum by q, k and v.

    Raises:
        TypeError: the attention is not one that JAX can differentiate.
    """
    dtype = dtypes.parse(probed.dtype)
    arrays = [jax.device_put(a.astype(dtype)) for a in (case.q, case.k, case.v)]

    def loss(q: Any, k: Any, v: Any) -> Any:
        out = probed.call(q, k, v, jax.device_put(case.mask))
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    return dict(
        zip("qkv", map(np.asarray, jax.grad(loss, argnums=(0, 1, 2))(*arrays)), strict=True)
    )


def diagnose(obeyed: np.ndarray, case: ProbeCase) -> str | None:
    """Return in words which other mask an attention obeyed, [B N T S]; None if none fits."""
    mask, live = case.mask, case.live[:, None, :, None]
    batch, t, s = mask.shape
    corner, by_position = case.with_rule(causal(align="top_left")), case.with_rule(causal())
    guesses = {
        "the mask inverted: what is hidden is seen": ~mask,
        "no mask at all": np.ones_like(mask),
        "causality without padding": by_position,
        "padding without causality": case.with_rule(padding()),
        "causality aligned at the top left": corner,
        "causality at the top left, with padding": corner & case.with_rule(padding()),
        "the mask, and causality at the top left besides": mask & corner,
        "a window of one key more": case.with_rule(causal() & padding() & window(4)),
        "a window of one key less": case.with_rule(causal() & padding() & window(2)),
        "its own key hidden": mask & ~np.eye(t, s, s - t, dtype=bool),
    }
    seen = {name: np.broadcast_to(guess[:, None], obeyed.shape) for name, guess in guesses.items()}
    if batch == obeyed.shape[1]:
        by_head = np.broadcast_to(mask[None], obeyed.shape)
        seen = {"[B, T, S] read as [N, T, S]: rows taken for heads": by_head, **seen}
    for name, guess in seen.items():
        # A row in which the guess shows nothing says nothing: kernels then differ among themselves.
        decided = live & guess.any(-1, keepdims=True)
        if decided.any() and not ((guess != obeyed) & decided).any():
            return name
    return None


# Running it
