"""Keys and values of past tokens: static shapes, one length per row, every slot accounted for.

A row's tokens lie side by side from slot 0. Pads are never written, so a left-padded, a
right-padded and an unpadded row of the same text leave the same cache.

Shapes: L layers, B batch, T new tokens, S slots, K kv heads, H head dim.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxllama.concrete import host_values
from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError, join_problems
from jaxllama.masks import Tokens
from jaxllama.memory import free_bytes, size_in_words
from jaxllama.quantisation import Int8Array, cache_bytes, checked_cache_dtype
from jaxllama.sharding.layout import ModelSharding
from jaxllama.sharding.rules import CACHE_APART, CACHE_ROWS, CACHE_STACKED

if TYPE_CHECKING:  # where an int8 array passes for an array, which it is held like
    _Held = Float[Array, "L B S K H"] | tuple[Float[Array, "B K S H"], ...]
else:
    _Held = Float[Array, "L B S K H"] | Int8Array | tuple[Float[Array, "B K S H"] | Int8Array, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """The state of a conversation, as a pytree; every method returns a new one.

    Attributes:
        k: rotated keys, in the cache's own dtype; int8 has a scale for each vector beside it. One
            array of all layers, which a pass that scans over layers needs, or apart, an array by
            heads for each: a CPU copies neither a layer out of the whole nor its keys into another
            order.
        v: values, likewise. Unwritten slots hold zeros: finite, so that a masked slot cannot
            poison a sum.
        positions: rotary position of each written slot, in tokens.
        segments: document number of each written slot (all 0 unless packed).
        lengths: tokens of each row, and so its written slots; above `capacity` only once tokens
            were dropped on the device, see `overflowed`.
        slots: where the tokens of the pending call go; `capacity` for tokens not to be kept. T is
            0 when no call is pending.
    """

    k: _Held
    v: _Held
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]
    lengths: Int[Array, " B"]
    slots: Int[Array, "B T"]

    @classmethod
    def empty(
        cls,
        config: LlamaConfig,
        batch: int,
        capacity: int,
        dtype: DTypeLike,
        *,
        apart: bool = False,
        sharding: ModelSharding | None = None,
    ) -> KVCache:
        """Return a cache with room for `capacity` tokens in each of `batch` rows.

        Args:
            config: gives the number of layers, kv heads and the head dim.
            batch: B, rows.
            capacity: S, slots a row, in tokens.
            dtype: of the stored keys and values; need not be the model's. `int8` has a scale for
                each token and head beside them.
            apart: an array for each layer, which suits a model whose layers are not stacked. A
                model takes either.
            sharding: the model's, if it lies on several devices.

        Raises:
            InputError: `batch` or `capacity` is not positive, no such dtype, or more than the
                memory that is free, where the host's is used.
        """
        dtype = checked_cache_dtype(dtype, "KVCache.empty: dtype")
        if batch < 1 or capacity < 1:
            raise InputError(
                f"KVCache.empty: batch {batch}, capacity {capacity}: both must be at least 1"
            )
        shape = (
            config.num_hidden_layers,
            batch,
            capacity,
            config.num_key_value_heads,
            config.head_dim,
        )
        free = free_bytes() if jax.default_backend() == "cpu" else None
        if free is not None and (needed := cache_bytes(config, batch, capacity, dtype)) > free:
            raise InputError(
                f"a cache of {batch} x {capacity} tokens in {dtype} takes {size_in_words(needed)}, "
                f"and {size_in_words(free)} of this machine's memory are free; give fewer rows or "
                "tokens"
            )
        return _zeros(shape, dtype, apart, sharding)

    @property
    def capacity(self) -> int:
        """Slots per row, in tokens."""
        return jax.tree.leaves(self.k)[0].shape[2]

    @property
    def nbytes(self) -> int:
        """Memory of keys and values, in bytes."""
        return sum(held.nbytes for held in jax.tree.leaves((self.k, self.v)))

    @property
    def dtype(self) -> jnp.dtype:
        """What keys and values are rounded to."""
        return jax.tree.leaves(self.k)[0].dtype

    @property
    def made_for(self) -> tuple[int, int, int]:
        """Layers, kv heads and head dim."""
        if isinstance(self.k, tuple):
            return len(self.k), self.k[0].shape[1], self.k[0].shape[3]
        return self.k.shape[0], self.k.shape[3], self.k.shape[4]

    def of_layer(
        self, layer: Int[Array, ""] | int
    ) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Return one layer's keys and values, whichever way they are held.

        Args:
            layer: which.

        Raises:
            InputError: layers are apart, and the number is being traced or is none of theirs.
        """
        if isinstance(self.k, tuple):
            layer = self._number(layer)
            return _floats(self.k[layer]).swapaxes(1, 2), _floats(self.v[layer]).swapaxes(1, 2)
        return _floats(self.k[layer]), _floats(self.v[layer])

    def _number(self, layer: Int[Array, ""] | int) -> int:
        """Return which of the layers that are apart is meant."""
        known = host_values(layer)
        if known is None:
            raise InputError(
                f"KVCache: layer {layer} is being traced, and picks none of layers that are apart; "
                "take the cache stacked()"
            )
        if not 0 <= (number := int(known[0])) < len(self.k):
            raise InputError(f"KVCache: layer {number}: expected 0 to {len(self.k) - 1}")
        return number

    def stacked(self) -> KVCache:
        """Return the cache with one array of all layers; itself if it is that already."""
        if not isinstance(self.k, tuple):
            return self

        def together(*layers: Array) -> Array:
            return jnp.stack(layers).swapaxes(2, 3)

        k, v = (jax.tree.map(together, *layers) for layers in (self.k, self.v))
        return dataclasses.replace(self, k=k, v=v)

    def apart(self) -> KVCache:
        """Return the cache with an array for each layer; itself if it is that already."""
        if isinstance(self.k, tuple):
            return self

        def one(held: Any, layer: int) -> Any:
            return jax.tree.map(lambda part: part[layer].swapaxes(1, 2), held)

        layers = range(self.made_for[0])
        k, v = (tuple(one(held, i) for i in layers) for held in (self.k, self.v))
        return dataclasses.replace(self, k=k, v=v)

    def on_mesh(self, sharding: ModelSharding | None) -> KVCache:
        """Return the cache laid out on a model's devices; itself if there is no mesh."""
        if sharding is None:
            return self
        names = CACHE_APART if isinstance(self.k, tuple) else CACHE_STACKED
        k, v = jax.tree.map(lambda held: sharding.keep(held, names), (self.k, self.v))
        return dataclasses.replace(
            self,
            k=k,
            v=v,
            positions=sharding.keep(self.positions, CACHE_ROWS),
            segments=sharding.keep(self.segments, CACHE_ROWS),
            lengths=sharding.keep(self.lengths, ()),  # every host looks at them
            slots=sharding.keep(self.slots, ()),
        )

    @property
    def overflowed(self) -> Bool[Array, " B"]:
        """Rows that lost tokens to a call inside `jit` that they had no room for."""
        return self.lengths > self.capacity

    def tokens(self) -> Tokens:
        """Describe the slots to a mask: which are written, and what stands in them."""
        valid = _written(self.lengths, self.capacity)
        return Tokens(positions=self.positions, valid=valid, segments=self.segments)

    def extend(
        self,
        positions: Int[Array, "B T"],
        valid: Bool[Array, "B T"],
        segments: Int[Array, "B T"] | None = None,
    ) -> KVCache:
        """Reserve slots for new tokens; the next model call fills them.

        Args:
            positions: rotary positions of the new tokens.
            valid: False for pads, which get no slot.
            segments: document numbers, when several are packed in a row.

        Raises:
            InputError: shapes differ, an earlier call is still pending, so that its slots hold
                nothing yet, or a row has no room. Inside `jit` the latter cannot be raised: tokens
                past the end are dropped there, no written slot is touched, and `overflowed` tells
                afterwards.
        """
        if self.slots.shape[1]:
            raise InputError(
                f"KVCache.extend: a call with {self.slots.shape[1]} tokens a row is still pending; "
                "run the model on it first, rewind it, or settle it if its layers were run singly"
            )
        batch = len(self.lengths)
        if segments is None:
            segments = jnp.zeros(positions.shape, jnp.int32)
        shapes = {"positions": positions.shape, "valid": valid.shape, "segments": segments.shape}
        if any(shape != (batch, *positions.shape[1:2]) for shape in shapes.values()):
            raise InputError(
                f"KVCache.extend: {', '.join(f'{k} {v}' for k, v in shapes.items())}: "
                f"each must be (B, T) with the cache's B = {batch}"
            )
        if known := host_values(self.lengths, valid):
            total = known[0] + known[1].sum(axis=1)
            if total[row := int(total.argmax())] > self.capacity:
                raise InputError(
                    f"KVCache.extend: row {row} would hold {total[row]} tokens, the cache has "
                    f"{self.capacity} slots; make it with a larger capacity, or rewind it"
                )
        return dataclasses.replace(self, **_reserved(self, positions, valid, segments))

    def rewind(self, lengths: Int[Array, " B"]) -> KVCache:
        """Forget everything after the first `lengths` tokens of each row, pending tokens too.

        Args:
            lengths: tokens to keep of each row.

        Raises:
            InputError: not one length a row, or one that is negative or more than the row holds
                (inside `jit` it is clipped instead).
        """
        if lengths.shape != self.lengths.shape:
            raise InputError(
                f"KVCache.rewind: lengths {lengths.shape}, expected {self.lengths.shape}, one a row"
            )
        if known := host_values(lengths, self.lengths):
            keep, holds = known[0], np.minimum(known[1], self.capacity)
            if (bad := (keep < 0) | (keep > holds)).any():
                row = int(bad.argmax())
                raise InputError(
                    f"KVCache.rewind: row {row} holds {holds[row]} tokens, "
                    f"cannot rewind it to {keep[row]}"
                )
        lengths = lengths.astype(jnp.int32)
        held = jnp.minimum(self.lengths, self.capacity)
        return dataclasses.replace(
            self, lengths=jnp.clip(lengths, 0, held), slots=_no_slots(len(lengths))
        )

    def write(
        self, layer: Int[Array, ""] | int, k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
    ) -> KVCache:
        """Store one layer's keys and values in the reserved slots, rounded to the cache's dtype.

        Args:
            layer: which layer's slots.
            k: rotated keys of the tokens given to `extend`.
            v: values of the same tokens.

        Raises:
            InputError: as for `of_layer`.

        The scatter drops what lies past the end, where a dynamic-update-slice would clamp its
        index and overwrite the last valid slot without a word.
        """

        def written(held: _Held, new: Array) -> _Held:
            if not isinstance(held, tuple):
                return _put_rounded(held, layer, self.slots, new)
            number = self._number(layer)
            one = _put_rounded(held[number], None, self.slots, new)
            return (*held[:number], one, *held[number + 1 :])

        return dataclasses.replace(self, k=written(self.k, k), v=written(self.v, v))

    def settle(self) -> KVCache:
        """Return the cache with no call pending, so that its slots cannot be written twice.

        The model does so itself; it is for those who run layers singly.
        """
        return dataclasses.replace(self, slots=_no_slots(len(self.lengths)))

    def check_fits(self, config: LlamaConfig, tokens_shape: tuple[int, ...]) -> None:
        """Check that this cache was made for the model and extended for a call's tokens.

        Args:
            config: of the model about to run.
            tokens_shape: (B, T) of the call.

        Raises:
            InputError: all that does not fit.
        """
        problems = []
        made_for = self.made_for
        wanted = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
        if made_for != wanted:
            problems.append(
                f"(layers, kv heads, head dim) {made_for}, the model's are {wanted}; make it with "
                "KVCache.empty(model.config, ...)"
            )
        if self.slots.shape != tokens_shape:
            problems.append(
                f"slots reserved for tokens {self.slots.shape}, called with {tokens_shape}; call "
                "cache = cache.extend(positions, valid) for exactly these tokens first"
            )
        if problems:
            raise InputError(join_problems("cache", problems))


# One program, and so one compilation for each shape where an array at a time takes four.
@partial(jax.jit, static_argnames=("shape", "dtype", "apart", "sharding"))
def _zeros(
    shape: tuple[int, ...], dtype: np.dtype, apart: bool, sharding: ModelSharding | None
) -> KVCache:
    """Return a cache without tokens, no array of which is another's, or none could be donated."""
    L, B, S, K, H = shape

    def zeros(shape: tuple[int, ...]) -> Any:
        if dtype != np.int8:
            return jnp.zeros(shape, dtype)
        return Int8Array(jnp.zeros(shape, dtype), jnp.zeros(shape[:-1], jnp.float32))

    def held() -> _Held:
        return tuple(zeros((B, K, S, H)) for _ in range(L)) if apart else zeros(shape)

    cache = KVCache(
        k=held(),
        v=held(),
        positions=jnp.zeros((B, S), jnp.int32),
        segments=jnp.zeros((B, S), jnp.int32),
        lengths=jnp.zeros((B,), jnp.int32),
        slots=jnp.zeros((B, 0), jnp.int32),
    )
    return cache.on_mesh(sharding)


def _no_slots(batch: int) -> Int[Array, "B 0"]:
    """Return the slots of no call: a slice of those of one is compiled, for each shape."""
    return jax.device_put(np.zeros((batch, 0), np.int32))


@partial(jax.jit, static_argnames=("capacity",))
def _written(lengths: Int[Array, " B"], capacity: int) -> Bool[Array, "B S"]:
    """Return which slots hold a token."""
    return jnp.arange(capacity, dtype=jnp.int32)[None, :] < lengths[:, None]


# Outside of `jit` too one program: its operations, each compiled for each shape, were two dozen.
@jax.jit
def _reserved(
    cache: KVCache,
    positions: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    segments: Int[Array, "B T"],
) -> dict[str, Array]:
    """Return the fields of a cache that has slots for new tokens, where these are others."""
    wanted = cache.lengths + valid.sum(axis=1, dtype=jnp.int32)
    slots = cache.lengths[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
    slots = jnp.where(valid & (slots < cache.capacity), slots, cache.capacity)
    rows = jnp.arange(len(cache.lengths), dtype=jnp.int32)[:, None]
    new_positions, new_segments = positions.astype(jnp.int32), segments.astype(jnp.int32)
    return {
        "positions": cache.positions.at[rows, slots].set(new_positions, mode="drop"),
        "segments": cache.segments.at[rows, slots].set(new_segments, mode="drop"),
        "lengths": wanted,
        "slots": slots,
    }


def _floats(held: Array | Int8Array) -> Float[Array, "..."]:
    return held.widened(jnp.float32) if isinstance(held, Int8Array) else held


def _put_rounded(
    held: Array | Int8Array,
    layer: Int[Array, ""] | int | None,
    slots: Int[Array, "B T"],
    new: Float[Array, "B T K H"],
) -> Any:
    """Write tokens as `_put` does, rounded to what is held."""
    if not isinstance(held, Int8Array):
        return _put(held, layer, slots, new.astype(held.dtype))
    return jax.tree.map(lambda part, x: _put(part, layer, slots, x), held, Int8Array.rounded(new))


@jax.custom_vjp
def _put(
    held: Shaped[Array, "..."],
    layer: Int[Array, ""] | int | None,
    slots: Int[Array, "B T"],
    new: Shaped[Array, "B T K *H"],
) -> Shaped[Array, "..."]:
    """Write each row's tokens into its slots, those past the end nowhere.

    Args:
        held: [L, B, S, K, H], or the one layer [B, K, S, H] if `layer` is None; of scales no H.
        layer: which.
        slots: where each token goes.
        new: the tokens', in the dtype of `held`.

    Two things that XLA does on a CPU are kept from it: to make a single token's write an update of
    a slice, which copies all of the cache four times, so that another token is written nowhere; and
    to widen the whole of an array of 16-bit floats before it writes one of them, and round it
    again, so that integers of the same bits are written.
    """
    if slots.size == 1:
        nowhere = jnp.full_like(slots, jnp.iinfo(slots.dtype).max)
        slots = jnp.concatenate([slots, nowhere], axis=1)
        new = jnp.concatenate([new, new], axis=1)
    places = _places(layer, slots)
    if held.dtype.itemsize != 2:
        return _scatter(held, places, new)
    bits, new_bits = (jax.lax.bitcast_convert_type(x, jnp.uint16) for x in (held, new))
    return jax.lax.bitcast_convert_type(_scatter(bits, places, new_bits), held.dtype)


# Rows are told from indices: where they are cut along a mesh, each device writes its own.
def _scatter(held: Array, places: Int[Array, "B T _"], new: Array) -> Array:
    batch, axes = _axes(places)
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(2, new.ndim)),
        inserted_window_dims=axes,
        scatter_dims_to_operand_dims=axes,
        operand_batching_dims=(batch,),
        scatter_indices_batching_dims=(0,),
    )
    return jax.lax.scatter(held, places, new, numbers, mode="drop")


def _gather(held: Array, places: Int[Array, "B T _"]) -> Shaped[Array, "B T K *H"]:
    batch, axes = _axes(places)
    window = [axis for axis in range(held.ndim) if axis not in (batch, *axes)]
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=tuple(range(2, 2 + len(window))),
        collapsed_slice_dims=axes,
        start_index_map=axes,
        operand_batching_dims=(batch,),
        start_indices_batching_dims=(0,),
    )
    sizes = [held.shape[axis] if axis in window else 1 for axis in range(held.ndim)]
    return jax.lax.gather(held, places, numbers, sizes, mode="fill", fill_value=0)


def _axes(places: Int[Array, "B T _"]) -> tuple[int, tuple[int, ...]]:
    """Return the axis of rows, and those that a token's place is an index into."""
    return (0, (2,)) if places.shape[-1] == 1 else (1, (0, 2))


def _places(layer: Array | int | None, slots: Int[Array, "B T"]) -> Int[Array, "B T _"]:
    """Return where each token goes: its slot, after its layer if that has an axis."""
    if layer is None:
        return slots[..., None]
    return jnp.stack([jnp.full_like(slots, layer), slots], axis=-1)


def _put_forward(
    held: Array, layer: Array | int | None, slots: Array, new: Array
) -> tuple[Array, tuple[Any, ...]]:
    return _put(held, layer, slots, new), (layer, slots)


def _put_backward(saved: tuple[Any, ...], pulled: Array) -> tuple[Array, None, None, Array]:
    places = _places(*saved)
    to_new = _gather(pulled, places)
    return _scatter(pulled, places, jnp.zeros_like(to_new)), None, None, to_new


_put.defvjp(_put_forward, _put_backward)
