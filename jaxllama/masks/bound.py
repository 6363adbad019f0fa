"""A mask rule applied to actual tokens, and lowered once to what an attention takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from numpy.typing import DTypeLike

from jaxllama.concrete import is_concrete
from jaxllama.dtypes import parse
from jaxllama.errors import InputError, join_problems
from jaxllama.masks import draw, kernel
from jaxllama.masks.algebra import Mask
from jaxllama.masks.tokens import Cells, Tokens

EmptyRow = Literal["zero", "error", "self"]

# The empty-row check and the drawing of a mask never hold more cells than this at once (16 MB).
BLOCK_CELLS = 1 << 24


@jax.tree_util.register_pytree_with_keys_class
class BoundMask:
    """A rule, its queries and its keys. Made by `Mask.bind`; a pytree whose leaves are tokens.

    `print(mask)` draws it in few lines, `mask.draw()` as large as a terminal has room for, and
    `mask.explain(q, k)` says which part shows or hides a cell.

    What kernels may be told by name was proved for the tokens given to `bind` and is static: bind
    again for other tokens, rather than replacing the arrays inside.
    """

    spec: Mask
    q: Tokens
    k: Tokens
    empty_row: EmptyRow
    same_tokens: bool  # the queries are the keys: "self" is then the same index
    structure: kernel.Structure | None

    def to_bool(self) -> Bool[Array, "B T S"]:
        """Return the dense mask, True = seen, with the empty-row policy applied."""
        return self.block()

    def to_bias(self, dtype: DTypeLike) -> Float[Array, "B T S"]:
        """Return what to add to the scores: 0 where seen, half the lowest number where hidden.

        Half, so that adding a score cannot overflow to -inf: float16's lowest, -65504, minus a
        score of 16 does. A row that is all hidden comes out uniform from a softmax: zero it by
        `live()`, as `jaxllama.attention` does.

        Args:
            dtype: a floating type, that of the scores: float32 would promote bfloat16 scores.
        Raises:
            InputError: not a floating type.
        """
        try:
            wanted = parse(dtype, "to_bias: dtype")
        except InputError as error:
            raise InputError(f"{error}; a mask of bool is to_bool()") from None
        hidden = jnp.asarray(float(jnp.finfo(wanted).min) / 2, wanted)
        return jnp.where(self.to_bool(), jnp.zeros((), wanted), hidden)

    def live(self) -> Bool[Array, "B T"]:
        """Return the queries that see any key at all; the others' output is exactly zero."""
        if self.structure is not None:
            live = self.kernel_arguments().live
            assert live is not None, "a structured mask always knows its live rows"
            return live
        return self.to_bool().any(axis=-1)

    def kernel_arguments(self) -> kernel.KernelArguments:
        """Return arguments of `jax.nn.dot_product_attention` that say exactly the same.

        Causality, window and lengths are given by name where rule and tokens are proved to be no
        more than that, and then nothing of size [T, S] is made; otherwise the dense mask is given.
        """
        if self.structure is None:
            mask = self.to_bool()
            live = mask.any(axis=-1)
            return kernel.KernelArguments(mask=mask, key_value_seq_lengths=None, live=live)
        found, (batch, t), s = self.structure, self.q.shape, self.k.shape[1]
        keys = t if found.causal and t < s else None
        lengths = jnp.full((batch,), s, jnp.int32)
        if found.lengths:
            lengths = jnp.asarray(self.k.valid).sum(axis=-1, dtype=jnp.int32)
        if found.decode:
            own, first_key = (
                jnp.asarray(side.positions)[:, 0].astype(jnp.int32) for side in (self.q, self.k)
            )
            lengths = jnp.minimum(lengths, own - first_key + 1)
        first = jnp.zeros((t,), jnp.int32)  # the first key a query may see
        if found.window is not None:
            first = jnp.maximum(jnp.arange(t, dtype=jnp.int32) - (found.window - 1), 0)
        bounded = found.lengths or found.decode
        return kernel.KernelArguments(
            mask=None,
            key_value_seq_lengths=jnp.clip(lengths, 1, keys or s) if bounded else None,
            live=lengths[:, None] > first[None, :],
            is_causal=found.causal,
            local_window_size=None if found.window is None else (found.window - 1, 0),
            keys=keys,
        )

    def explain(self, q: int, k: int, row: int = 0) -> str:
        """Return in words which parts of the rule show or hide key `k` to query `q`.

        Args:
            q: index of the query in its row.
            k: index of the key in its row.
            row: which row of the batch.
        Raises:
            InputError: no such cell.
        """
        return draw.explain(self, q, k, row)

    def draw(self, width: int | None = None) -> str:
        """Return the mask drawn in text: queries down, keys across.

        A mask of more than 64 keys or 32 queries is drawn in blocks; a block is `+` where only some
        of its cells are seen, so no lone cell is averaged away. Of a batch four rows are drawn.

        Args:
            width: columns that a line may take, 24 at least; of 64 keys if None.
        """
        return draw.draw(self, width)

    def __str__(self) -> str:
        return draw.in_brief(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the same picture in colours."""
        return draw.draw_html(self)

    def __repr__(self) -> str:
        (batch, t), s = self.q.shape, self.k.shape[1]
        return f"BoundMask({self.spec}, B={batch}, T={t}, S={s}, empty_row={self.empty_row!r})"

    def block(self, queries: Any = None, keys: Any = None, *, xp: Any = jnp) -> Any:
        """Return the dense mask of some queries and keys (1-D arrays of indices), or all.

        With `xp=numpy` it is computed on the host, without compiling anything, and inside `jit`
        too where rule and tokens are known.
        """
        if xp is np:  # a predicate may use jax.numpy, which would be traced inside `jit`
            with jax.ensure_compile_time_eval():
                return self._block(queries, keys, np)
        return self._block(queries, keys, xp)

    def _block(self, queries: Any, keys: Any, xp: Any) -> Any:
        cells = Cells.of(self.q, self.k, queries, keys, xp=xp)
        seen = self._by_rule(cells)
        if self.empty_row != "self":
            return seen
        rows = seen if keys is None else self._by_rule(Cells.of(self.q, self.k, queries, xp=xp))
        return seen | (~rows.any(axis=-1, keepdims=True) & self._own(cells))

    def _by_rule(self, cells: Cells) -> Any:
        """Return what the rule alone says, before the empty-row policy."""
        return cells.xp.broadcast_to(self.spec.cells(cells), cells.shape)

    def _own(self, cells: Cells) -> Any:
        """Return each query's own key: the same index, or the first of its position and segment."""
        if self.same_tokens:
            return cells.q_index == cells.k_index
        all_keys = Cells.of(self.q, self.k, cells.q_index[0, :, 0], xp=cells.xp)
        match = all_keys.q_position == all_keys.k_position
        match = match & (all_keys.q_valid == all_keys.k_valid) & all_keys.comparable()
        first = match.argmax(axis=-1, keepdims=True).astype(np.int32)
        return match.any(axis=-1, keepdims=True) & (cells.k_index == first)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first query, dense mask [B, t, S]) over blocks of queries, on the host."""
        (batch, t), s = self.q.shape, self.k.shape[1]
        step = max(1, BLOCK_CELLS // max(1, batch * s))
        for start in range(0, t, step):
            yield start, self.block(np.arange(start, min(t, start + step)), xp=np)

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], Any]:
        """Return rule and tokens as children; policy and structure are static."""
        key = jax.tree_util.GetAttrKey
        children = tuple((key(n), getattr(self, n)) for n in ("spec", "q", "k"))
        return children, (self.empty_row, self.same_tokens, self.structure)

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> BoundMask:
        """Rebuild without checks."""
        bound = object.__new__(cls)
        bound.spec, bound.q, bound.k = children
        bound.empty_row, bound.same_tokens, bound.structure = aux
        return bound


def bind(spec: Mask, q: Tokens, k: Tokens, empty_row: EmptyRow) -> BoundMask:
    """Check that rule and tokens fit each other and put them together; see `Mask.bind`."""
    problems = []
    if empty_row not in get_args(EmptyRow):
        problems.append(f"empty_row={empty_row!r}: expected one of {', '.join(get_args(EmptyRow))}")
    if q.shape[0] != k.shape[0]:
        problems.append(
            f"batch: {q.shape[0]} rows of queries, {k.shape[0]} of keys; expected as many"
        )
    problems += _check(spec, q, k)
    if problems:
        raise InputError(join_problems(f"bind {spec}", list(dict.fromkeys(problems))))
    structure = kernel.structure(spec, q, k, empty_row)
    bound = BoundMask.tree_unflatten((empty_row, q is k, structure), (spec, q, k))
    if empty_row == "error":
        _refuse_empty_rows(bound)
    return bound


def _check(spec: Mask, q: Tokens, k: Tokens) -> list[str]:
    return [
        *spec.check(q, k),
        *(problem for part in spec.parts() for problem in _check(part, q, k)),
    ]


def _refuse_empty_rows(bound: BoundMask) -> None:
    """Raise for every real query that sees nothing; padding's own rows are nobody's concern."""
    if not is_concrete(bound):
        raise InputError(
            f'bind {bound.spec}: empty_row="error" looks at values, which do not exist yet under'
            ' jit; bind outside of it, or choose empty_row="zero" or "self"'
        )
    if bound.structure is not None:
        with jax.ensure_compile_time_eval():
            live = np.asarray(bound.live())
        empty = np.argwhere(~live & np.asarray(bound.q.valid))
    else:
        valid = np.asarray(bound.q.valid)
        found = [
            np.argwhere(~seen.any(-1) & valid[:, i : i + seen.shape[1]]) + np.array([0, i])
            for i, seen in bound.blocks()
        ]
        empty = np.concatenate(found)
    if len(empty):
        named = ", ".join(f"(row {b}, query {i})" for b, i in empty[:8])
        named += ", ..." if len(empty) > 8 else ""
        raise InputError(
            f"bind {bound.spec}: {len(empty)} real queries see no key, expected none: {named}; let"
            ' each see itself (empty_row="self") or declare their output zero (empty_row="zero")'
        )
