"""A small Llama for tests, and the same model once more in plain NumPy float64.

No two sizes are equal, so that no transpose and no swapped head map fits by accident; weights have
a large variance and norms a weight of their own, since near-zero weights make attention uniform
and hide any fault. Every weight is a bfloat16 number: one set is exact in every dtype.

B batch, T query tokens, S key tokens, N query heads, K kv heads, H head dim, D model dim, F mlp
dim, V vocabulary, L layers.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import ml_dtypes
import numpy as np

from jaxllama.attention import Backend
from jaxllama.checkpoint import in_memory, load_model
from jaxllama.config import LlamaConfig, RopeScaling
from jaxllama.model import Llama

LLAMA3 = RopeScaling(
    kind="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
LINEAR = RopeScaling(kind="linear", factor=4.0)

# D is no N * H. Heads of 16 give the llama3 stretch frequencies to keep, to blend and to divide.
CONFIG = LlamaConfig(
    vocab_size=67,
    hidden_size=30,
    intermediate_size=44,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=5e5,
    rope_scaling=LLAMA3,
    tie_word_embeddings=False,
    max_position_embeddings=131072,
)


def random_weights(config: LlamaConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Return bfloat16 weights by canonical name, [out, in]; attention scores spread by about 2."""
    D, F, V, H = config.hidden_size, config.intermediate_size, config.vocab_size, config.head_dim
    N, K = config.num_attention_heads, config.num_key_value_heads
    rng = np.random.default_rng(seed)

    def matrix(out: int, into: int, gain: float = 1.0) -> np.ndarray:
        values = rng.standard_normal((out, into)) * gain / math.sqrt(into)
        return values.astype(ml_dtypes.bfloat16)

    def norm() -> np.ndarray:
        return rng.uniform(0.5, 1.5, D).astype(ml_dtypes.bfloat16)

    weights = {"model.embed_tokens.weight": matrix(V, D, math.sqrt(D)), "model.norm.weight": norm()}
    for i in range(config.num_hidden_layers):
        weights |= {
            f"model.layers.{i}.input_layernorm.weight": norm(),
            f"model.layers.{i}.self_attn.q_proj.weight": matrix(N * H, D, 1.4),
            f"model.layers.{i}.self_attn.k_proj.weight": matrix(K * H, D, 1.4),
            f"model.layers.{i}.self_attn.v_proj.weight": matrix(K * H, D),
            f"model.layers.{i}.self_attn.o_proj.weight": matrix(D, N * H),
            f"model.layers.{i}.post_attention_layernorm.weight": norm(),
            f"model.layers.{i}.mlp.gate_proj.weight": matrix(F, D),
            f"model.layers.{i}.mlp.up_proj.weight": matrix(F, D),
            f"model.layers.{i}.mlp.down_proj.weight": matrix(D, F),
        }
    if not config.tie_word_embeddings:
        weights["lm_head.weight"] = matrix(V, D)
    return weights


def build(
    config: LlamaConfig = CONFIG, dtype: Any = "float64", *, seed: int = 0, backend: Backend = "xla"
) -> Llama:
    """Return the model of `random_weights(config, seed)`."""
    model = load_model(in_memory(config, random_weights(config, seed)), dtype=dtype)
    model.backend = backend
    return model


def random_tokens(config: LlamaConfig, batch: int, length: int, seed: int = 0) -> np.ndarray:
    """Return token ids [B T], int32."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, config.vocab_size, (batch, length)).astype(np.int32)


def visible(positions: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the causal mask [B T T] of padded rows, written without `jaxllama.masks`."""
    return (positions[:, None, :] <= positions[:, :, None]) & valid[:, None, :]


def padded_rows(
    length: int, starts: list[int], stops: list[int], first: int = 0, stride: int = 1
) -> Any:
    """Return positions and valid [B T] of rows whose real tokens are columns start to stop.

    Args:
        length: T.
        starts: first real column of each row; pads before it have position 0.
        stops: one past the last real column of each row.
        first: position of each row's first real token.
        stride: from one token's position to the next. Rotation is relative: only distant tokens
            tell one set of slow frequencies from another.
    """
    columns = np.arange(length)[None, :]
    start, stop = np.asarray(starts)[:, None], np.asarray(stops)[:, None]
    valid = (columns >= start) & (columns < stop)
    positions = np.where(valid, (columns - start) * stride + first, 0)
    return positions.astype(np.int32), valid


def published_inv_freq(config: LlamaConfig) -> np.ndarray:
    """Return the frequencies [H/2] in float64, branch by branch as Meta's reference has them."""
    found = []
    for i in range(0, config.head_dim, 2):
        freq = 1.0 / config.rope_theta ** (i / config.head_dim)
        scaling = config.rope_scaling
        if scaling is not None and scaling.kind == "linear":
            freq /= scaling.factor
        elif scaling is not None:
            context = scaling.original_max_position_embeddings
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            assert context is not None and low is not None and high is not None
            wavelength = 2 * math.pi / freq
            if wavelength > context / low:
                freq /= scaling.factor
            elif wavelength >= context / high:
                smooth = (context / wavelength - low) / (high - low)
                freq = (1 - smooth) * freq / scaling.factor + smooth * freq
        found.append(freq)
    return np.array(found)


def numpy_llama(
    config: LlamaConfig,
    weights: dict[str, np.ndarray],
    tokens: np.ndarray,
    positions: np.ndarray,
    mask: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return every tap of a forward pass, in float64, one head at a time: slow and plain."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    freq = published_inv_freq(config)
    turn = np.exp(1j * positions[:, :, None] * freq)  # pair (i, i + H/2) as one complex number

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return weight * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.rms_norm_eps)

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], -1, config.head_dim)

    def rotate(x: np.ndarray) -> np.ndarray:
        half = config.head_dim // 2
        turned = (x[..., :half] + 1j * x[..., half:]) * turn[:, :, None, :]
        return np.concatenate([turned.real, turned.imag], axis=-1)

    taps = {"rope.inv_freq": freq, "positions": positions, "mask": mask}
    x = taps["embed"] = w["model.embed_tokens.weight"][tokens]
    for i in range(config.num_hidden_layers):
        get = functools.partial(lambda i, name: w[f"model.layers.{i}.{name}.weight"], i)
        t: dict[str, np.ndarray] = {"input": x}
        h = t["input_layernorm"] = norm(x, get("input_layernorm"))
        for name in ("q_proj", "k_proj", "v_proj"):
            t[name] = split(h @ get(f"self_attn.{name}").T)
        q, k = t["q_rope"], t["k_rope"] = rotate(t["q_proj"]), rotate(t["k_proj"])
        scores, probs, context = [], [], []
        for n in range(heads):
            kv = n // (heads // groups)
            s = np.einsum("bth,bsh->bts", q[:, :, n], k[:, :, kv]) / math.sqrt(config.head_dim)
            p = np.where(mask, np.exp(s - s.max(axis=-1, keepdims=True)), 0.0)
            p = p / np.maximum(p.sum(axis=-1, keepdims=True), np.finfo(float).tiny)
            scores.append(s)
            probs.append(p)
            context.append(p @ t["v_proj"][:, :, kv])
        t["attn_scores"], t["attn_probs"] = np.stack(scores, 1), np.stack(probs, 1)
        t["attn_context"] = np.stack(context, 2)
        t["o_proj"] = t["attn_context"].reshape(*x.shape[:2], -1) @ get("self_attn.o_proj").T
        x = t["post_attention"] = x + t["o_proj"]
        h = t["post_attention_layernorm"] = norm(x, get("post_attention_layernorm"))
        gate, up = t["gate_proj"], t["up_proj"] = (
            h @ get("mlp.gate_proj").T,
            h @ get("mlp.up_proj").T,
        )
        t["mlp_act"] = gate / (1 + np.exp(-gate)) * up
        t["down_proj"] = t["mlp_act"] @ get("mlp.down_proj").T
        x = t["output"] = x + t["down_proj"]
        taps |= {f"layers.{i}.{name}": value for name, value in t.items()}
    taps["norm"] = norm(x, w["model.norm.weight"])
    head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    taps["logits"] = taps["norm"] @ w[f"{head}.weight"].T
    return taps
