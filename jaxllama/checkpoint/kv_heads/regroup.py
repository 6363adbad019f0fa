"""Other numbers of key and value heads: means of several where fewer are wanted, copies where more.

Shapes: N query heads, K kv heads, H head dim, D model dim.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jaxllama.checkpoint.base import Checkpoint, TensorInfo
from jaxllama.checkpoint.dtypes import cast
from jaxllama.errors import InputError, argument

_PROJECTIONS = ("self_attn.k_proj.weight", "self_attn.v_proj.weight")


def with_kv_heads(checkpoint: Checkpoint, kv_heads: int) -> Checkpoint:
    """Return a checkpoint with another number of key and value heads, still read lazily.

    Fewer are the means of neighbours, which is where GQA begins that is then trained on; by itself
    it is another model, and worse. More are copies, each for fewer query heads: the same function.

    Args:
        checkpoint: whose K heads are pooled or repeated.
        kv_heads: a divisor of K, or a multiple of it that divides N; 1 is MQA, N is MHA.

    Raises:
        InputError: another number.

    Source: Ainslie et al. 2023, GQA, section 2.1 (arXiv 2305.13245).
    """
    config = checkpoint.config
    N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    able = [n for n in range(1, N + 1) if K % n == 0 or (n % K == 0 and N % n == 0)]
    if kv_heads not in able:
        raise InputError(
            f"{argument('kv_heads', kv_heads)}: {checkpoint.label} has {K} key heads for {N} query "
            f"heads; expected one of {', '.join(map(str, able))}"
        )
    if kv_heads == K:
        return checkpoint

    def read(name: str) -> np.ndarray:
        values = checkpoint.reader(name)
        return _regrouped(values, K, kv_heads) if name.endswith(_PROJECTIONS) else values

    def told(name: str, info: TensorInfo) -> TensorInfo:
        if not name.endswith(_PROJECTIONS):
            return info
        return replace(info, shape=(kv_heads * H, info.shape[1]), encoding="")

    how = "means of neighbours" if kv_heads < K else "copies"
    note = f"{K} key and value heads made {kv_heads}: {how}"
    return replace(
        checkpoint,
        config=config.replace(num_key_value_heads=kv_heads),
        hf_config={**checkpoint.hf_config, "num_key_value_heads": kv_heads},
        tensors={name: told(name, info) for name, info in checkpoint.tensors.items()},
        reader=read,
        part_reader=None,  # a part of a mean is of other parts
        notes=(*checkpoint.notes, note),
    )


def _regrouped(weight: np.ndarray, held: int, wanted: int) -> np.ndarray:
    """Return a projection's weight [wanted*H, D] of one with `held` heads [held*H, D]."""
    heads = weight.reshape(held, -1, weight.shape[-1])
    if wanted > held:
        return np.repeat(heads, wanted // held, axis=0).reshape(-1, weight.shape[-1])
    groups = heads.reshape(wanted, held // wanted, *heads.shape[1:])
    wide = np.float64 if weight.dtype == np.float64 else np.float32
    pooled = groups.astype(wide).mean(axis=1, dtype=wide)
    return cast(pooled.reshape(-1, weight.shape[-1]), weight.dtype)
