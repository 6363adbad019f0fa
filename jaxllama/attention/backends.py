"""Grouped-query attention under an explicit mask, on several backends.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, G = N // K, H head dim.
Query head n uses kv head n // G. No backend repeats keys or values in memory. A query that may
see no key gets exactly zero on every backend: left alone, a softmax over nothing but masked
cells would return the mean of all values.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxllama.attention import cudnn
from jaxllama.attention.blockwise import attend_blockwise, block_size
from jaxllama.attention.reference import attend_reference
from jaxllama.attention.splash import LEAST_QUERIES, attend_splash, splash_arguments
from jaxllama.dtypes import parse
from jaxllama.errors import InputError, argument, join_problems
from jaxllama.masks import BoundMask, KernelArguments
from jaxllama.taps import Tapper, untapped

Backend = Literal["xla", "blockwise", "dot_product", "cudnn", "splash"]

_SPLASH_DTYPES = ("bfloat16", "float32")
# Of cuDNN's flash attention; 128 before Hopper.
_CUDNN_MAX_HEAD_DIM = 256


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"] | BoundMask,
    *,
    scale: float,
    backend: Backend = "xla",
    tap: Tapper = untapped,
) -> Float[Array, "B T N H"]:
    """Attend from every query to the keys its mask row shows.

    Args:
        q: rotated queries.
        k: rotated keys, in q's dtype.
        v: values, in q's dtype.
        mask: True where the query may see the key. A `BoundMask` tells kernels causality, window
            and lengths by name where it can, and nothing of size [T, S] is made.
        scale: factor on the scores.
        backend: `xla` alone can show scores and probabilities to `tap`; where nobody looks and
            there are many queries it is `blockwise`, which never holds a whole map, whatever the
            mask; `dot_product` is `jax.nn.dot_product_attention`, whose softmax is float32 whatever
            its inputs are; `cudnn` the same function on cuDNN's kernel; `splash` JAX's kernel for
            TPUs, where a `BoundMask` tells it all by name, and else `xla`.
        tap: sees `attn_scores`, `attn_probs` (both [B, N, T, S]) and `attn_context`.

    Returns:
        The weighted values of each head, in q's dtype.

    Raises:
        InputError: shapes that do not fit together, or a backend that cannot do this here.
    """
    check_backend(backend, q.dtype, q.shape[-1])
    _check_shapes(q, k, v, mask)
    if backend == "splash":
        told = splash_arguments(q.shape[1], mask)
        if told is not None:
            return tap("attn_context", attend_splash(q, k, v, told, scale))
        backend = "xla"
    size = block_size(q.shape[1], always=backend == "blockwise")
    if backend == "blockwise" or (backend == "xla" and not tap.watched and size):
        return tap("attn_context", attend_blockwise(q, k, v, mask, scale, size))
    if backend == "xla":
        dense = mask.to_bool() if isinstance(mask, BoundMask) else mask
        return tap("attn_context", attend_reference(q, k, v, dense, scale, tap))
    if isinstance(mask, BoundMask):
        arguments = mask.kernel_arguments()
    else:
        arguments = KernelArguments(mask=mask, key_value_seq_lengths=None, live=mask.any(axis=-1))
    # Its own code compares int64 indices with int32 lengths: not under strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        context = jax.nn.dot_product_attention(
            q,
            k[:, : arguments.keys],
            v[:, : arguments.keys],
            scale=scale,
            implementation="cudnn" if backend == "cudnn" else "xla",
            **arguments.as_dict(),
        )
    if arguments.live is not None:
        context = jnp.where(arguments.live[:, :, None, None], context, jnp.zeros_like(context))
    return tap("attn_context", context)


def knows_rules(backend: Backend) -> bool:
    """Whether a backend would make use here of a mask that is proved to be rules by name."""
    return backend != "xla" or jax.default_backend() in ("gpu", "tpu")


def fastest_backend(
    backend: Backend,
    mask: Bool[Array, "B T S"] | BoundMask,
    x: Float[Array, "B T D"],
    head_dim: int,
) -> Backend:
    """Return the backend in place of `xla` that is exact, too, and faster; else the one given.

    Args:
        backend: asked for.
        mask: what may be seen.
        x: input of the layers, on one device, of which nobody looks at scores.
        head_dim: H.
    """
    if backend != "xla":
        return backend
    T, platform = x.shape[1], jax.default_backend()
    if platform == "gpu" and cudnn.takes(T, mask, x.dtype, head_dim):
        return "cudnn"
    if platform == "tpu" and x.dtype.name in _SPLASH_DTYPES and T >= LEAST_QUERIES:
        return "splash" if splash_arguments(T, mask) is not None else backend
    return backend


def check_backend(backend: str, dtype: jnp.dtype, head_dim: int, *, on_mesh: bool = False) -> None:
    """Refuse a backend that cannot serve this dtype and head dim on this machine.

    Args:
        backend: asked for.
        dtype: of queries, keys and values.
        head_dim: H.
        on_mesh: whether they lie on several devices.

    Raises:
        InputError: says what stands in the way and what to choose instead.
    """
    if backend not in get_args(Backend):
        raise InputError(f"attention backend {backend!r}: expected one of {get_args(Backend)}")
    name = parse(dtype).name
    problems = []
    if backend == "dot_product" and name == "float64":
        problems.append(
            "dtype float64: jax.nn.dot_product_attention computes its softmax in float32; use xla "
            "for float64"
        )
    platform = jax.default_backend()
    if backend == "dot_product" and name == "float16" and platform == "cpu":
        problems.append(
            "dtype float16: jax.nn.dot_product_attention does not support it on cpu; use xla"
        )
    if backend == "cudnn":
        if platform != "gpu":
            problems.append(f"JAX runs on {platform}, expected gpu; use xla")
        if on_mesh:
            problems.append("the model lies on a mesh, which the kernel was not tried on; use xla")
        if name not in cudnn.DTYPES:
            problems.append(
                f"dtype {name}, expected one of {', '.join(cudnn.DTYPES)}; give "
                f"{argument('dtype', 'bf16')}, or use xla"
            )
        if head_dim % 8 or head_dim > _CUDNN_MAX_HEAD_DIM:
            problems.append(
                f"head_dim {head_dim}, expected a multiple of 8 up to {_CUDNN_MAX_HEAD_DIM}; use "
                "xla"
            )
    if backend == "splash":
        if platform != "tpu":
            problems.append(f"JAX runs on {platform}, expected tpu; use xla")
        if on_mesh:
            problems.append("the model lies on a mesh, where XLA cannot cut the kernel; use xla")
        if name not in _SPLASH_DTYPES:
            problems.append(
                f"dtype {name}, expected one of {', '.join(_SPLASH_DTYPES)}; give "
                f"{argument('dtype', 'bf16')}, or use xla"
            )
        if head_dim % 8:
            problems.append(f"head_dim {head_dim}, expected a multiple of 8; use xla")
    if problems:
        raise InputError(join_problems(f"attention backend {backend!r}", problems))


def _check_shapes(q: Array, k: Array, v: Array, mask: Array | BoundMask) -> None:
    B, T, N, H = q.shape
    S, K = k.shape[1], k.shape[2]
    if k.shape != v.shape or k.shape[0] != B or k.shape[3] != H or N % K:
        raise InputError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape}: expected q (B, T, N, H) and "
            "k, v (B, S, K, H) with K dividing N"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise InputError(
            f"attention: q {q.dtype}, k {k.dtype}, v {v.dtype}: expected one dtype; cast k and v "
            "to that of q"
        )
    shape: tuple[int, ...]
    if isinstance(mask, BoundMask):
        shape, dtype = (*mask.q.shape, mask.k.shape[1]), jnp.dtype(bool)
    else:
        shape, dtype = mask.shape, mask.dtype
    if shape != (B, T, S) or dtype != jnp.bool_:
        raise InputError(
            f"attention mask: {dtype} {shape}, expected bool {(B, T, S)} = (B, T, S), "
            "True where a query may see a key; build it with jaxllama.masks"
        )
