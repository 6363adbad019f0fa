"""When cuDNN's flash attention is chosen unasked: where it is there, and can be told the mask.

It is told causality and lengths by name (`jaxllama.masks.kernel`). Windows it would take, too, but
not in every release that JAX does, and rows that a window leaves without keys are the kernel's
affair: they are left to what is exact by itself.
"""

from __future__ import annotations

import functools
import re

import jax
from jaxtyping import Array, Bool

from jaxllama.masks import BoundMask

DTYPES = ("bfloat16", "float16")
# Flash attention's products take Ampere's matrix units, which JAX does not ask for.
_LEAST_CAPABILITY = (8, 0)


def takes(
    queries: int, mask: Bool[Array, "B T S"] | BoundMask, dtype: jax.numpy.dtype, head_dim: int
) -> bool:
    """Return whether the kernel is there for these shapes, and computes exactly this mask.

    Args:
        queries: T. One alone reads its keys once, whoever asks: there is nothing to skip.
        mask: what may be seen.
        dtype: of queries, keys and values.
        head_dim: H.
    """
    if queries == 1 or not isinstance(mask, BoundMask) or mask.structure is None:
        return False
    if mask.structure.window is not None or dtype.name not in DTYPES:
        return False
    return capability() >= _LEAST_CAPABILITY and _jax_takes(dtype.name, head_dim)


def capability() -> tuple[int, int]:
    """Return CUDA's compute capability of this machine's GPU; (0, 0) where it has none."""
    said = str(getattr(jax.local_devices()[0], "compute_capability", ""))  # ROCm: gfx90a
    found = re.fullmatch(r"(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@functools.cache
def _jax_takes(dtype: str, head_dim: int) -> bool:
    """Whether JAX has a cuDNN here that takes these heads: how large they may be, the GPU says."""
    x = jax.ShapeDtypeStruct((1, 2, 1, head_dim), dtype)

    def attention(x: Array) -> Array:
        return jax.nn.dot_product_attention(x, x, x, is_causal=True, implementation="cudnn")

    try:
        jax.eval_shape(attention, x)
    except (NotImplementedError, RuntimeError):
        return False
    return True
