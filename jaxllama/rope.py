"""Rotary position embedding, half-split: feature i turns together with feature i + H/2.

Shapes: B batch, T tokens, N heads, H head dim, R = H / 2 rotated pairs.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxllama.config import LlamaConfig
from jaxllama.dtypes import at_least_float32


def inv_freq(config: LlamaConfig) -> Float[np.ndarray, " R"]:
    """Return the angle each feature pair turns per token, in radians, as float64.

    It is computed on the host in float64, because an error of one part in 2^24 grows with the
    position: at token 8192 it is already 5e-4 rad.

    Args:
        config: gives `rope_theta`, `head_dim` and `rope_scaling`.

    Returns:
        Frequencies in radians per token, fastest first.

    Source: Su et al. 2021 (arXiv 2104.09864), equation 15; `RopeScaling.frequency_factors` for
        the stretch.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    plain = config.rope_theta**-exponents
    if config.rope_scaling is None:
        return plain
    return plain / config.rope_scaling.frequency_factors(plain)


def rope_cos_sin(
    frequencies: Float[Array, " R"], positions: Int[Array, "B T"], dtype: DTypeLike
) -> tuple[Float[Array, "B T R"], Float[Array, "B T R"]]:
    """Return cos and sin of every position's angles, at least in float32 whatever `dtype` is.

    In bfloat16 a position above 256 no longer has a value of its own (257 becomes 256).

    Args:
        frequencies: radians per token.
        positions: in tokens, 0 for a row's first real token.
        dtype: the model's compute dtype.

    Returns:
        cos and sin, each [B, T, R].
    """
    wide = at_least_float32(dtype)
    angles = positions.astype(wide)[..., None] * frequencies.astype(wide)[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T R"], sin: Float[Array, "B T R"]
) -> Float[Array, "B T N H"]:
    """Rotate each head's feature pairs (i, i + H/2) by their position's angles, rounding once.

    Args:
        x: queries or keys of every head.
        cos: of the angles of each token's position, see `rope_cos_sin`.
        sin: likewise.

    Returns:
        The rotated heads, in x's dtype.

    Source: Su et al. 2021 (arXiv 2104.09864), equation 34, with pairs laid out as GPT-NeoX and
        Hugging Face do.
    """
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
