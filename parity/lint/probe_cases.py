"""What attentions are questioned with: small inputs under masks that real use needs.

Letters: B batch, T queries, S keys, N query heads, K kv heads, H head dim. All sizes differ, but
for one case where B equals N: that is where a [B, T, S] mask passes for [N, T, S] in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from jaxllama.masks import BoundMask, Mask, Tokens, causal, padding, segments, window

B, N, K, H = 4, 6, 2, 8
T, S = 9, 11  # both more than H: the identity probe takes two turns

# q [B T N H], k and v [B S K H], mask [B T S] bool (or a BoundMask) -> [B T N H]
Attend = Callable[[Any, Any, Any, Any], Any]


@dataclass(frozen=True, eq=False)
class Probed:
    """An attention under question.

    Attributes:
        name: for messages.
        call: q, k, v, mask -> out.
        structured: it also takes a `BoundMask`, which it may tell a kernel by name.
        dtype: of q, k and v, a name of `jaxllama.dtypes.parse`.
        instrumented: the same, but returns (out, weights [B N T S]) as its own taps show them.
        finite_only: its caller promises finite K and V in hidden slots, as `KVCache` does.
    """

    name: str
    call: Attend
    structured: bool = False
    dtype: str = "f32"
    instrumented: Callable[[Any, Any, Any, Any], tuple[Any, Any]] | None = None
    finite_only: bool = False


@dataclass(frozen=True, eq=False)
class ProbeCase:
    """One set of inputs, float32, and the mask to be obeyed.

    Scores stay below about 5, so that no visible weight underflows to 0.
    """

    name: str
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    bound: BoundMask
    mask: np.ndarray

    @property
    def live(self) -> np.ndarray:
        """[B, T]: real queries that see a key. What padding gets is nobody's concern."""
        return np.asarray(self.mask.any(-1) & np.asarray(self.bound.q.valid))

    @property
    def empty(self) -> np.ndarray:
        """[B, T]: real queries that see no key."""
        return np.asarray(~self.mask.any(-1) & np.asarray(self.bound.q.valid))

    def with_rule(self, rule: Mask) -> np.ndarray:
        """Return [B, T, S] of another rule on the same tokens."""
        return np.asarray(rule.bind(self.bound.q, self.bound.k).block(xp=np))


@cache
def cases() -> tuple[ProbeCase, ...]:
    """Return every case; the last has a row that sees nothing."""
    lengths = np.array([9, 7, 1, 4])
    full, ragged = Tokens.contiguous(np.full(B, T), T), Tokens.contiguous(lengths, T)
    left = _left_padded(lengths)
    cached = Tokens.contiguous(np.array([11, 8, 3, 5]), S)
    last = Tokens(np.array([[10], [7], [2], [4]], np.int32), np.ones((B, 1), bool))
    late = _consecutive(np.array([9, 6, 1, 3]), 2)
    heads = Tokens.contiguous(np.array([9, 2, 5, 7, 1, 3]), T)
    gone = Tokens.contiguous(np.array([9, 0, 4, 2]), T)
    both = causal() & padding()
    return (
        _case("causal", causal(), full, full),
        _case("right-padded", both, ragged, ragged),
        _case("left-padded", both, left, left),
        _case("window", both & window(3), ragged, ragged),
        _case("packed", both & segments(), _packed(full), _packed(full)),
        _case("prefill into a cache", both, ragged, Tokens.contiguous(lengths, S)),
        _case("chunk after a cache", both, late, cached),
        _case("decode", both, last, cached),
        _case("as many rows as heads", both, heads, heads),
        _case("a row that sees nothing", both, full, gone),
    )


def _case(name: str, rule: Mask, q: Tokens, k: Tokens) -> ProbeCase:
    rng = np.random.default_rng(sum(map(ord, name)))
    (batch, t), s = q.shape, k.shape[1]
    bound = rule.bind(q, k)
    shapes = ((batch, t, N, H), (batch, s, K, H), (batch, s, K, H))
    q_, k_, v_ = (rng.uniform(-1.3, 1.3, shape).astype(np.float32) for shape in shapes)
    return ProbeCase(name, q_, k_, v_, bound, np.asarray(bound.block(xp=np)))


def _left_padded(lengths: np.ndarray) -> Tokens:
    valid = np.arange(T)[None, :] >= T - lengths[:, None]
    return Tokens(np.maximum(valid.cumsum(1) - 1, 0).astype(np.int32), valid)


def _consecutive(first: np.ndarray, count: int) -> Tokens:
    positions = (first[:, None] + np.arange(count)).astype(np.int32)
    return Tokens(positions, np.ones(positions.shape, bool))


def _packed(tokens: Tokens) -> Tokens:
    starts = np.array([4, 2, 7, 1])[:, None]
    index = np.arange(T)[None, :]
    second = index >= starts
    positions = np.where(second, index - starts, index).astype(np.int32)
    return Tokens(positions, np.asarray(tokens.valid), second.astype(np.int32))
