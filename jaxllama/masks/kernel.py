"""When a kernel's own arguments (causal flag, lengths, window) say exactly the same as a mask.

The proof needs the rule to be an AND of parts that a kernel knows, and the tokens to lie the way
kernels assume: keys at consecutive positions from the start of the array, padding on the right. It
looks at O(B (T + S)) values, or at none where `Tokens.contiguous` promises them; a mask it cannot
prove equal is lowered densely.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxllama.masks.algebra import And, Mask
from jaxllama.masks.specs import Causal, Padding, Segments, Window
from jaxllama.masks.tokens import Tokens, segments_of


@dataclass(frozen=True)
class Structure:
    """What a mask is proved to be: static, so that it survives tracing."""

    causal: bool  # query i sees keys j <= i
    lengths: bool  # keys beyond the row's length are hidden
    window: int | None  # with causal: the last `window` keys
    decode: bool  # T == 1: causality is one more bound on the length


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KernelArguments:
    """Arguments of `jax.nn.dot_product_attention`, and what is left to do around the call.

    Args:
        mask: [B, T, S] bool where the rest does not say it all, else None.
        is_causal: query i sees keys j <= i. Only given where T equals the number of keys, since
            kernels differ in whether they align the corner at the top left or the bottom right.
        key_value_seq_lengths: [B] int32, keys from this index on are hidden; at least 1.
        local_window_size: (keys to the left, to the right) of the query, itself not counted.
        keys: no query sees a key from this index on: cut K and V there. None where all may be seen.
        live: [B, T] bool, queries that see any key; the caller sets the output of the others to
            zero, since kernels give them the mean of V or NaN.
    """

    mask: Bool[Array, "B T S"] | None
    key_value_seq_lengths: Int[Array, " B"] | None
    live: Bool[Array, "B T"] | None
    is_causal: bool = field(default=False, metadata={"static": True})
    local_window_size: tuple[int, int] | None = field(default=None, metadata={"static": True})
    keys: int | None = field(default=None, metadata={"static": True})

    @property
    def dense(self) -> bool:
        """Whether a mask of size [T, S] is needed."""
        return self.mask is not None

    def as_dict(self) -> dict[str, Any]:
        """Return the keyword arguments; a [B, T, S] mask would be read as [N, T, S]."""
        return {
            "mask": None if self.mask is None else self.mask[:, None],
            "is_causal": self.is_causal,
            "key_value_seq_lengths": self.key_value_seq_lengths,
            "local_window_size": self.local_window_size,
        }


def structure(spec: Mask, q: Tokens, k: Tokens, empty_row: str) -> Structure | None:
    """Return what `spec` is on these tokens in a kernel's terms, or None where it cannot be proved.

    Args:
        spec: the rule.
        q: the queries, [B, T].
        k: the keys, [B, S].
        empty_row: "self" adds cells that no kernel argument can say.
    """
    atoms = _atoms(spec)
    known = all(isinstance(atom, Causal | Padding | Window | Segments) for atom in atoms)
    if not known or empty_row == "self":
        return None
    t, s = q.shape[1], k.shape[1]
    causal = any(isinstance(atom, Causal) for atom in atoms)
    by_index = [atom for atom in atoms if isinstance(atom, Causal) and atom.align != "position"]
    by_position = any(isinstance(atom, Causal) and atom.align == "position" for atom in atoms)
    windows = [atom.window_keys for atom in atoms if isinstance(atom, Window)]
    found = Structure(
        causal=causal and t > 1,
        lengths=any(isinstance(atom, Padding) for atom in atoms),
        window=min(windows, default=None),
        decode=by_position and t == 1,
    )
    if (windows and (not causal or t == 1)) or t > s or (by_index and t != s):
        return None
    if not _one_document(q, k):
        return None
    if found.lengths and not _right_padded(k):
        return None
    if (by_position or windows) and not _aligned(q, k, decode=found.decode, padded=found.lengths):
        return None
    return found


def _atoms(spec: Mask) -> list[Mask]:
    if isinstance(spec, And):
        return [*_atoms(spec.left), *_atoms(spec.right)]
    return [spec]


def _one_document(q: Tokens, k: Tokens) -> bool:
    """Whether segments hide nothing: there are none, or all of a row's tokens are of one."""
    if q.segments is None and k.segments is None:
        return True
    if not (q.concrete and k.concrete):
        return False
    asks, asked = np.asarray(segments_of(q, k)), np.asarray(segments_of(k, q))
    return bool((asks == asked[:, :1]).all() and (asked == asked[:, :1]).all())


def _right_padded(k: Tokens) -> bool:
    """Whether each row's valid keys are the first ones, without a hole."""
    if k.from_zero:
        return True
    if not k.concrete:
        return False
    valid = np.asarray(k.valid)
    return bool((valid[:, 1:] <= valid[:, :-1]).all())


def _aligned(q: Tokens, k: Tokens, *, decode: bool, padded: bool) -> bool:
    """Whether comparing positions is comparing indices, for every cell that padding leaves."""
    if k.from_zero and (decode or q.from_zero):
        return True
    if not (q.concrete and k.concrete):
        return False
    q_pos, k_pos, valid = np.asarray(q.positions), np.asarray(k.positions), np.asarray(k.valid)
    origin = k_pos[:, :1]
    in_place = k_pos == origin + np.arange(k_pos.shape[1])
    if not (in_place | ~valid if padded else in_place).all():
        return False
    return decode or bool((q_pos == origin + np.arange(q_pos.shape[1])).all())
