"""Who asks and who is asked: the explicit facts about tokens that every mask is computed from.

Shape letters: B batch, T query length, S key length.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxllama.concrete import is_concrete
from jaxllama.errors import InputError, join_problems

IntB = Int[Array, " B"] | Int[np.ndarray, " B"]

_FIELDS = ("positions", "valid", "segments")


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class Tokens:
    """One side of an attention: the queries, or the keys they may look at.

    Nothing here is derived from token ids: a token counts where `valid`, not where its id is not
    the pad id.

    Args:
        positions: [B, T] integers, each token's place in its own sequence, in tokens.
        valid: [B, T] bool, False on padding and on cache slots that hold nothing yet.
        segments: [B, T] integers, the document of each token when several are packed in one row.
            None is the same as all 0.

    Raises:
        InputError: ranks, shapes or dtypes do not fit; every problem is listed.
    """

    # Not typed with shapes: what does not fit is refused below, all of it in one error.
    positions: Array | np.ndarray
    valid: Array | np.ndarray
    segments: Array | np.ndarray | None = None
    # Positions are 0, 1, 2, ... and padding is on the right. A promise that survives tracing:
    # `contiguous` alone makes it, and dataclasses.replace drops it.
    from_zero: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        problems = []
        shape = np.shape(self.positions)
        if len(shape) != 2:
            problems.append(f"positions: shape {shape}, expected [B, T]; add a batch axis")
        for name, array, kind in (
            ("positions", self.positions, np.integer),
            ("valid", self.valid, np.bool_),
            ("segments", self.segments, np.integer),
        ):
            if array is None:
                continue
            if np.shape(array) != shape:
                problems.append(f"{name}: shape {np.shape(array)}, expected positions' {shape}")
            dtype = getattr(array, "dtype", None)
            if dtype is None or not np.issubdtype(dtype, kind):
                actual = dtype or type(array).__name__
                problems.append(f"{name}: dtype {actual}, expected {kind.__name__}")
        if problems:
            raise InputError(join_problems("tokens", problems))

    @classmethod
    def contiguous(cls, lengths: IntB, size: int) -> Tokens:
        """Return rows whose first `lengths[b]` of `size` tokens are real, at positions 0, 1, 2, ...

        The layout is known even while `lengths` is traced, so that kernels can take lengths
        instead of a dense mask.

        Args:
            lengths: [B] integers, real tokens of each row; the rest is padding on the right.
            size: tokens of a row, padding included.
        """
        lengths = jnp.asarray(lengths).astype(jnp.int32)
        index = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32)[None, :], (len(lengths), size))
        tokens = cls(positions=index, valid=index < lengths[:, None])
        object.__setattr__(tokens, "from_zero", True)
        return tokens

    @property
    def shape(self) -> tuple[int, int]:
        """Batch size and number of tokens of a row."""
        batch, size = np.shape(self.positions)
        return batch, size

    @property
    def concrete(self) -> bool:
        """Whether the values can be looked at now, that is, nothing is being traced."""
        return is_concrete(self)

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], bool]:
        """Return the arrays as children; the layout is static."""
        key = jax.tree_util.GetAttrKey
        children = tuple((key(n), getattr(self, n)) for n in _FIELDS)
        return children, self.from_zero

    @classmethod
    def tree_unflatten(cls, from_zero: bool, children: Any) -> Tokens:
        """Rebuild without checks: JAX also passes placeholders that are no arrays."""
        tokens = object.__new__(cls)
        for name, value in zip(_FIELDS, children, strict=True):
            object.__setattr__(tokens, name, value)
        object.__setattr__(tokens, "from_zero", from_zero)
        return tokens


@dataclass(frozen=True, eq=False)
class Cells:
    """The facts of every (query, key) pair, each array ready to broadcast to [B, T, S].

    A user's `predicate` receives one of these and returns a bool array that broadcasts so, too.
    """

    q_position: Any  # [B, T, 1]
    k_position: Any  # [B, 1, S]
    q_valid: Any
    k_valid: Any
    q_segment: Any | None
    k_segment: Any | None
    q_index: Any  # [1, T, 1] place in the array, which is not the position
    k_index: Any  # [1, 1, S]
    xp: Any  # the arrays' module: jax.numpy, or numpy for looking at values on the host
    q_size: int  # T and S of the whole mask, of which these cells may be a part
    k_size: int

    @classmethod
    def of(
        cls, q: Tokens, k: Tokens, queries: Any = None, keys: Any = None, *, xp: Any = jnp
    ) -> Cells:
        """Return the cells of all pairs, or of the given query and key indices (1-D) alone."""
        qi = xp.arange(q.shape[1]) if queries is None else xp.asarray(queries)
        ki = xp.arange(k.shape[1]) if keys is None else xp.asarray(keys)

        def take(array: Any, chosen: Any) -> Any:
            array = xp.asarray(array)
            if array.dtype != np.bool_:  # one integer type, whatever the two sides came in
                array = array.astype(np.int32)
            return array if chosen is None else array[:, xp.asarray(chosen)]

        def of_query(array: Any) -> Any:
            return None if array is None else take(array, queries)[:, :, None]

        def of_key(array: Any) -> Any:
            return None if array is None else take(array, keys)[:, None, :]

        return cls(
            q_position=of_query(q.positions),
            k_position=of_key(k.positions),
            q_valid=of_query(q.valid),
            k_valid=of_key(k.valid),
            q_segment=of_query(segments_of(q, k)),
            k_segment=of_key(segments_of(k, q)),
            q_index=qi.astype(np.int32)[None, :, None],
            k_index=ki.astype(np.int32)[None, None, :],
            xp=xp,
            q_size=q.shape[1],
            k_size=k.shape[1],
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, T, S of these cells."""
        return self.q_position.shape[0], self.q_position.shape[1], self.k_position.shape[2]

    def row(self, index: int) -> Cells:
        """Return the cells of one row of the batch."""
        names = ("q_position", "k_position", "q_valid", "k_valid", "q_segment", "k_segment")
        whole = {name: getattr(self, name) for name in names}
        cut: dict[str, Any] = {
            name: None if array is None else array[index : index + 1]
            for name, array in whole.items()
        }
        return replace(self, **cut)

    def comparable(self) -> Any:
        """Return where positions can be compared: within one segment, since each restarts at 0."""
        if self.q_segment is None or self.k_segment is None:
            return self.xp.ones((1, 1, 1), dtype=bool)
        return self.q_segment == self.k_segment


def segments_of(side: Tokens, other: Tokens) -> Any:
    """Return a side's segments: all 0 where only the other side names any, None if neither does."""
    if side.segments is not None or other.segments is None:
        return side.segments
    return np.zeros(side.shape, np.int32)  # not traced, also inside jit
