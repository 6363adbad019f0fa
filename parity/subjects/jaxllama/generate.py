"""`jaxllama.generate` and `jaxllama.sampling` as what `parity.generation` asks of them.

Shapes: B batch, T tokens, M new tokens, S cache slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxllama import sampling
from jaxllama.cache import KVCache
from jaxllama.errors import InputError
from jaxllama.generate import Generation, Watcher, generate
from jaxllama.masks import Tokens, causal, padding
from jaxllama.model import Llama
from jaxllama.sharding.hosts import host_array
from parity.inputs import Inputs
from parity.subjects.jaxllama.rows import repeated, rows_added, with_rows


@dataclass(frozen=True, eq=False)
class GeneratedTokens:
    """What `generate` returned, as NumPy arrays.

    Attributes:
        tokens, lengths, logprobs, finish_reasons, seeds: as in `jaxllama.generate.Generation`.
        held: tokens in each row of its cache.
        positions: of these.
        vocabulary: how many ids there are.
        cache: to go on with.
    """

    tokens: Int[np.ndarray, "B M"]
    lengths: Int[np.ndarray, " B"]
    logprobs: Float[np.ndarray, "B M"]
    finish_reasons: tuple[str, ...]
    seeds: tuple[int, ...]
    held: Int[np.ndarray, " B"]
    positions: Int[np.ndarray, "B S"]
    vocabulary: int
    cache: KVCache


class Generator:
    """A model that writes.

    Args:
        model: of `jaxllama`.
    """

    def __init__(self, model: Llama) -> None:
        self.model = model

    def empty_cache(self, rows: int, capacity: int) -> KVCache:
        """Return a cache with room for `capacity` tokens in each of `rows` rows."""
        return KVCache.empty(
            self.model.config,
            rows + rows_added(self.model, rows),
            capacity,
            self.model.dtype,
            sharding=self.model.sharding,
        )

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        *,
        setting: Mapping[str, Any],
        eos: Sequence[int],
        seeds: int | Sequence[int],
        cache: KVCache | None = None,
        watch: Watcher | None = None,
        every: int = 1,
    ) -> GeneratedTokens:
        """Run `generate`.

        Args:
            prompts: token ids, a sequence a row.
            new_tokens: most to write in a row.
            setting: of `jaxllama.sampling.Sampling`, by name.
            eos: tokens that end a row.
            seeds: one, or one a row.
            cache: to continue from; it is consumed.
            watch: looks at the rows now and then, and may end some.
            every: tokens between two looks.
        """
        rows = len(prompts)
        added = rows_added(self.model, rows)
        found: Generation = generate(
            self.model,
            repeated(prompts, added),
            max_new_tokens=new_tokens,
            sampling=sampling.Sampling(**setting),
            eos_ids=eos,
            seed=seeds if isinstance(seeds, int) else repeated(seeds, added),
            cache=cache,
            watch=watch,
            every=every,
        )
        return GeneratedTokens(
            _returned("tokens", found.tokens, "iu", (rows + added, None))[:rows],
            _returned("lengths", found.lengths, "iu", (rows + added,))[:rows],
            _returned("logprobs", found.logprobs, "f", (rows + added, None))[:rows],
            found.finish_reasons[:rows],
            tuple(map(int, found.seeds[:rows])),
            host_array(found.cache.lengths)[:rows],
            host_array(found.cache.positions)[:rows],
            self.model.config.vocab_size,
            found.cache,
        )

    def read(self, inputs: Inputs, capacity: int) -> KVCache:
        """Return a cache that holds a padded batch, read by the model in one call."""
        rows = len(inputs.tokens)
        inputs = with_rows(inputs, rows_added(self.model, rows))
        return _read(
            self.model,
            jax.device_put(inputs.tokens),
            jax.device_put(inputs.positions),
            jax.device_put(inputs.valid),
            self.empty_cache(rows, capacity),
        )


def _returned(name: str, value: Any, kinds: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return what `generate` said as an array.

    Raises:
        InputError: it is of another shape or kind than it says that it returns.
    """
    array = np.asarray(value)
    alike = array.ndim == len(shape) and array.dtype.kind in kinds
    if not alike or any(
        size is not None and size != array.shape[i] for i, size in enumerate(shape)
    ):
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(
            f"generate returned {name} {array.shape} of {array.dtype}, expected "
            f"{'integers' if 'i' in kinds else 'floats'} ({sizes})"
        )
    return array


@jax.jit
def _read(
    model: Llama,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    cache: KVCache,
) -> KVCache:
    cache = cache.extend(positions, valid)
    queries = Tokens(positions, valid, jnp.zeros_like(positions))
    mask = (causal() & padding()).bind(queries, cache.tokens())
    filled = model(tokens, positions=positions, mask=mask, cache=cache)[1]
    assert filled is not None
    return filled


def kept_logits(
    logits: Float[np.ndarray, "B V"], setting: Mapping[str, Any], seen: Bool[np.ndarray, "B V"]
) -> Float[np.ndarray, "B V"]:
    """Return what `jaxllama.sampling` draws from; its parts in the order that `choose` has."""
    values, x = sampling.Sampling(**setting).values(), jax.device_put(logits)
    if "repetition_penalty" in values:
        x = sampling.penalise(x, jax.device_put(seen), values["repetition_penalty"])
    if "temperature" in values:
        x = sampling.filter_logits(x / values["temperature"].astype(x.dtype), values)
    return np.asarray(x)


def draw(
    logits: Float[np.ndarray, "B V"],
    setting: Mapping[str, Any],
    seen: Bool[np.ndarray, "B V"],
    keys: jax.Array,
) -> Int[np.ndarray, " B"]:
    """Return the tokens that `jaxllama.sampling` draws with keys, one a row."""
    values = sampling.Sampling(**setting).values()
    return np.asarray(sampling.choose(jax.device_put(logits), keys, values, jax.device_put(seen)))
