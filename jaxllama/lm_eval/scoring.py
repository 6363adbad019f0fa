"""How likely a model finds tokens, a batch of texts at a time.

Shapes: B rows, T columns, V vocabulary, W columns of one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxllama.dtypes import at_least_float32
from jaxllama.masks import Tokens, causal, padding
from jaxllama.model import Llama
from jaxllama.request import bucket

# Columns whose logits exist at once: of Llama 3's vocabulary 8 MB a row in float32.
_BLOCK = 16


class Scorer:
    """Scores texts with a model; each shape, a power of two, is compiled once.

    Args:
        model: the model.
    """

    def __init__(self, model: Llama) -> None:
        self._graph, self._weights = nnx.split(model)

    def __call__(
        self, rows: Sequence[Sequence[int]], rows_in_batch: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return of each text's tokens but the first how likely they are, and whether most likely.

        Args:
            rows: token ids, at least two each.
            rows_in_batch: B; fewer are filled up, so that no other shape is compiled.

        Returns:
            For each text natural log-probabilities [n - 1] and whether each is the largest [n - 1].
        """
        width = bucket(max(map(len, rows)) - 1)
        fed = np.zeros((rows_in_batch, width), np.int32)
        wanted = np.zeros_like(fed)
        lengths = np.zeros(rows_in_batch, np.int32)
        for number, row in enumerate(rows):
            fed[number, : len(row) - 1], wanted[number, : len(row) - 1] = row[:-1], row[1:]
            lengths[number] = len(row) - 1
        found = _score(self._graph, self._weights, fed, wanted, lengths)
        likely, best = map(np.asarray, found)
        ends = [len(row) - 1 for row in rows]
        return [(likely[i, :end], best[i, :end]) for i, end in enumerate(ends)]


@partial(jax.jit, static_argnames=("graph",))
def _score(
    graph: nnx.GraphDef[Llama],
    weights: nnx.State,
    tokens: Int[Array, "B T"],
    wanted: Int[Array, "B T"],
    lengths: Int[Array, " B"],
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    model = nnx.merge(graph, weights)
    known = Tokens.contiguous(lengths, tokens.shape[1])
    mask = (causal() & padding()).bind(known, known)
    x, _ = model.hidden(tokens, positions=jnp.asarray(known.positions), mask=mask)

    def block(held: tuple[Float[Array, "B W D"], Int[Array, "B W"]]) -> tuple[Array, Array]:
        logits = model.head(held[0])
        logits = logits.astype(at_least_float32(logits.dtype))
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        chosen = jnp.take_along_axis(logprobs, held[1][..., None], axis=-1)[..., 0]
        return chosen, logits.argmax(axis=-1).astype(held[1].dtype) == held[1]

    parts = tokens.shape[1] // _BLOCK
    cut = [jnp.stack(jnp.split(values, parts, axis=1)) for values in (x, wanted)]
    likely, best = jax.lax.map(block, (cut[0], cut[1]))
    return jnp.concatenate(list(likely), axis=1), jnp.concatenate(list(best), axis=1)
