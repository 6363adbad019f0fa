"""What a matrix product really computes in, found out by multiplying: `float32` may not mean it.

By default a recent NVIDIA GPU rounds float32 factors to TF32 and a TPU to bfloat16, and neither
says so. `jax.default_matmul_precision("highest")` turns that off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxllama.errors import InputError, argument

Product = Callable[[Any, Any], Any]

# What a run may be asked for; the first is what judges the meaning of a model.
HIGHEST = "highest"
PRECISIONS = (HIGHEST, "high", "default")

# Significant bits, the leading one included. float16 has as many as TF32; nobody computes a
# float32 product in it.
_NAMES = {53: "float64", 24: "float32", 16: "bfloat16_3x", 11: "tfloat32", 8: "bfloat16"}
_SIZE = 128  # so that no library takes the path it keeps for tiny matrices


def check_precision(precision: str, *, ours: bool) -> None:
    """Refuse a precision that there is not, or that the subject would not be run at.

    Args:
        precision: as asked for.
        ours: whether the subject is this project's model, whole.

    Raises:
        InputError: it is refused.
    """
    if precision not in PRECISIONS:
        raise InputError(
            f"{argument('precision', precision)}: expected one of {', '.join(PRECISIONS)}"
        )
    if precision != HIGHEST and not ours:
        raise InputError(
            f"{argument('precision', precision)}: is that of this project's own model, whole; "
            "another sets its own, and streams and quantised models run at the highest"
        )


def effective_matmul_precision(dtype: DTypeLike = "float32", product: Product | None = None) -> str:
    """Return what a matrix product of this dtype keeps of its factors and of its sum.

    Row b of one matrix holds numbers of exactly b significant bits, and the other is the identity:
    the rows that come back unchanged tell how many bits a factor keeps, on either side. A second
    product adds 1 and 2^-b, for the bits of the accumulator.

    Args:
        dtype: of both factors.
        product: (a, b) -> a @ b; by default JAX's on its default device, at the precision in force
            (`jax.default_matmul_precision`).

    Returns:
        `float64`, `float32`, `bfloat16_3x` (three bfloat16 products for one), `tfloat32`,
        `bfloat16`, or `<n> bits` for a number of bits that has no name.
    """
    multiply = jax.jit(jnp.matmul) if product is None else product
    bits = min(_factor_bits(multiply, dtype), _sum_bits(multiply, dtype))
    return _NAMES.get(bits, f"{bits} bits")


def _multiplied(multiply: Product, dtype: DTypeLike, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(multiply(*(jax.device_put(x.astype(dtype)) for x in (a, b))), np.float64)


def _factor_bits(multiply: Product, dtype: DTypeLike) -> int:
    size = _significand(dtype)
    rng = np.random.default_rng(0)
    values = np.ones((_SIZE, _SIZE))
    for bits in range(2, size + 1):
        # First and last bit set, anything between: no shorter number, nor a sum of two, equals all.
        middle = rng.integers(0, 2 ** (bits - 2), _SIZE) * 2
        values[bits] = (2 ** (bits - 1) + middle + 1) * 2.0 ** (1 - bits)
    identity = np.eye(_SIZE)
    kept = size
    for found in (
        _multiplied(multiply, dtype, values, identity),
        _multiplied(multiply, dtype, identity, values.T).T,
    ):
        changed = [b for b in range(2, size + 1) if (found[b] != values[b]).any()]
        kept = min(kept, min(changed, default=size + 1) - 1)
    return kept


def _sum_bits(multiply: Product, dtype: DTypeLike) -> int:
    """Return the bits of the sum; at least those of `dtype`'s own result are asked for."""
    size = _significand(dtype)
    terms = np.zeros((_SIZE, _SIZE))
    terms[:, 0] = 1.0
    for bits in range(2, size + 1):
        terms[bits, 1] = 2.0 ** (1 - bits)
    sums = _multiplied(multiply, dtype, terms, np.ones((_SIZE, _SIZE)))
    changed = [b for b in range(2, size + 1) if (sums[b] != terms[b].sum()).any()]
    return min(changed, default=size + 1) - 1


def _significand(dtype: DTypeLike) -> int:
    return int(jnp.finfo(dtype).nmant) + 1
