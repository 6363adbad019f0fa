"""Arrays of whole numbers of few bits, with the scales that make numbers of them again.

All are symmetric, nearest, and rounded along their last axis: what a product sums over has one
scale, which is taken out of the sum.

Shapes: any leading axes, then O vectors (output features) of I numbers (input features); g numbers
of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxllama.dtypes import at_least_float32
from jaxllama.errors import InputError

# On a device, or on the host while it is filled.
if TYPE_CHECKING:
    _Either = Array
else:
    _Either = Array | np.ndarray

# From a shape and a dtype.
Make = Callable[..., np.ndarray]

# The largest whole numbers: one more would fit below zero, and make the range lopsided.
_MOST8, _MOST4 = 127, 7
# Numbers that are rounded at a time on the host.
_BLOCK = 1 << 22
# Of 7 times a step, which then fits int8.
_MOST_STEP = _MOST8 // _MOST4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Array:
    """Numbers as int8, with a scale for each vector: x = values * scale.

    Attributes:
        values: from -127 to 127.
        scale: float32, of each vector.
    """

    values: Int[_Either, "*O I"]
    scale: Float[_Either, "*O"]

    @classmethod
    def empty(cls, shape: tuple[int, ...], make: Make = np.empty) -> Int8Array:
        """Return an array on the host to be filled by `array[index] = matrix`."""
        arrays: tuple[Any, ...] = (make(shape, np.int8), make(shape[:-1], np.float32))
        return cls(*arrays)

    @classmethod
    def rounded(cls, x: Float[Array, "*O I"]) -> Int8Array:
        """Round numbers, inside `jit` too. What is NaN makes its vector NaN.

        Raises:
            InputError: it is being differentiated.
        """
        return cls(*_rounded(x))

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the numbers."""
        return self.values.shape

    def __getitem__(self, index: Any) -> Int8Array:
        return Int8Array(self.values[index], self.scale[index])

    def __setitem__(self, index: Any, numbers: np.ndarray) -> None:
        at = self[index]
        for rows, wide in _row_blocks(numbers):
            scale = np.abs(wide).max(axis=-1, keepdims=True) / np.float32(_MOST8)
            _fill(at.values, rows, np.rint(wide / _nonzero(scale)))
            _fill(at.scale, rows, scale[..., 0])

    def as_int8(self) -> Int8Array:
        """Return itself."""
        return self

    def widened(self, dtype: DTypeLike) -> Float[Array, "*O I"]:
        """Return the numbers, rounded once to `dtype`."""
        wide = at_least_float32(dtype)
        return (self.values.astype(wide) * self.scale[..., None].astype(wide)).astype(dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int4Array:
    """Numbers as int4, two a byte, with a whole step for each group and a scale for each vector:
    x = value * step * scale.

    A value times its step is an int8, so that the product is that of `Int8Array`. Source: the
    progressive group quantisation of Lin et al. 2024 (arXiv 2405.04532), here symmetric.

    Attributes:
        packed: in the low half of a byte a number of the first half of the vector, or of a part of
            it, in the high half the number as far into the second half; each from -7 to 7. Halves
            are as long as can be: unpacking neighbours takes a CPU five times as long.
        steps: int8, of each group, from 1 to 18.
        scale: float32, of each vector.
        parts: equal parts of a vector that are packed each by itself, so that it can be cut there.
    """

    packed: Int[_Either, "*O half"]
    steps: Int[_Either, "*O groups"]
    scale: Float[_Either, "*O"]
    parts: int = field(default=1, metadata={"static": True})

    @classmethod
    def empty(
        cls, shape: tuple[int, ...], group: int, parts: int = 1, make: Make = np.empty
    ) -> Int4Array:
        """Return an array on the host to be filled by `array[index] = matrix`."""
        *rows, size = shape
        packed: Any = make((*rows, size // 2), np.int8)
        steps: Any = make((*rows, size // group), np.int8)
        scale: Any = make(tuple(rows), np.float32)
        return cls(packed, steps, scale, parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the numbers."""
        return *self.packed.shape[:-1], 2 * self.packed.shape[-1]

    @property
    def group(self) -> int:
        """Numbers that share a step."""
        return self.shape[-1] // self.steps.shape[-1]

    def __getitem__(self, index: Any) -> Int4Array:
        return Int4Array(self.packed[index], self.steps[index], self.scale[index], self.parts)

    def __setitem__(self, index: Any, numbers: np.ndarray) -> None:
        at = self[index]
        for rows, wide in _row_blocks(numbers):
            scale = np.abs(wide).max(axis=-1, keepdims=True) / np.float32(_MOST4 * _MOST_STEP)
            grouped = (wide / _nonzero(scale)).reshape(*wide.shape[:-1], -1, self.group)
            # Rounded up: of a step too small the largest number would be cut. The largest of all
            # may stand a rounding above a whole step.
            needed = np.ceil(np.abs(grouped).max(axis=-1) / _MOST4 - 1e-4)
            steps = np.clip(needed, 1, _MOST_STEP)
            values = np.clip(np.rint(grouped / steps[..., None]), -_MOST4, _MOST4).astype(np.int8)
            halves = values.reshape(*wide.shape[:-1], self.parts, 2, -1)
            packed = (halves[..., 0, :] & 15) | (halves[..., 1, :] << 4)
            _fill(at.packed, rows, packed.reshape(*wide.shape[:-1], -1))
            _fill(at.steps, rows, steps)
            _fill(at.scale, rows, scale[..., 0])

    def as_int8(self) -> Int8Array:
        """Return the same numbers as int8, inside `jit` too."""
        steps = jnp.repeat(self.steps, self.group, axis=-1)
        packed = self.packed.reshape(*self.packed.shape[:-1], self.parts, -1)
        # Shifting back and forth brings the sign of the low half with it.
        halves = [(packed << 4) >> 4, packed >> 4]
        values = jnp.concatenate(halves, axis=-1).reshape(self.shape)
        return Int8Array(values * steps, self.scale)

    def widened(self, dtype: DTypeLike) -> Float[Array, "*O I"]:
        """Return the numbers."""
        return self.as_int8().widened(dtype)


Quantised = Int8Array | Int4Array


@jax.custom_jvp
def _rounded(x: Float[Array, "*O I"]) -> tuple[Int[Array, "*O I"], Float[Array, "*O"]]:
    wide = x.astype(jnp.float32)
    scale = jnp.abs(wide).max(axis=-1) / _MOST8
    # A vector of zeros has scale 0, and is zeros whatever it is divided by.
    by = jnp.where(scale == 0, jnp.ones_like(scale), scale)
    return jnp.round(wide / by[..., None]).astype(jnp.int8), scale


@_rounded.defjvp
def _refuse_gradients(primals: Any, tangents: Any) -> Any:
    """Say so where the scale alone would have a gradient, which looks like one."""
    raise InputError(
        "an int8 cache has no gradients: whole numbers have no slope; give it a floating dtype to "
        "differentiate through it"
    )


def hollow(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return an array that has a shape and takes no memory, not to be filled."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _row_blocks(numbers: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows of a matrix in float32: rounding takes some copies, which all of it need not."""
    size = max(1, _BLOCK * len(numbers) // max(numbers.size, 1))
    for start in range(0, len(numbers), size):
        rows = slice(start, start + size)
        yield rows, numbers[rows].astype(np.float32, copy=False)


def _fill(held: Any, rows: slice, numbers: np.ndarray) -> None:
    """Write into a view of an array on the host."""
    held[rows] = numbers


def _nonzero(scale: np.ndarray) -> np.ndarray:
    """Return scales to divide by: a vector of zeros is zeros by any."""
    return np.where(scale == 0, np.float32(1), scale)
