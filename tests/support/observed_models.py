"""Functions that run small models of several libraries, for `parity lint --from`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from transformers import LlamaConfig, LlamaForCausalLM

from jaxllama import Llama
from jaxllama.attention import Backend
from jaxllama.masks import Tokens, causal, padding

VALID = [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def _transformers(attention: str, mask: list[list[int]] | None) -> None:
    model = LlamaForCausalLM(LlamaConfig(**_SMALL, attn_implementation=attention)).eval()
    with torch.no_grad():
        model(torch.ones((2, 6), dtype=torch.long), attention_mask=mask and torch.tensor(mask))


def transformers_sdpa() -> None:
    _transformers("sdpa", VALID)


def transformers_eager() -> None:
    _transformers("eager", VALID)


def transformers_without_mask() -> None:
    _transformers("sdpa", None)


def _multihead(**masks: torch.Tensor) -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 4, batch_first=True).eval()
    layer(torch.randn(2, 6, 16), **masks)


def multihead() -> None:
    future = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
    _multihead(src_mask=future, src_key_padding_mask=torch.tensor(VALID) == 0)


def multihead_with_validity_for_padding() -> None:
    """True is padding there; here it is what is real."""
    future = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
    _multihead(src_mask=future, src_key_padding_mask=torch.tensor(VALID) == 1)


def _ours(backend: Backend) -> None:
    valid = jnp.asarray(VALID, bool)
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0).astype(jnp.int32)
    tokens = Tokens(positions, valid)
    mask = (causal() & padding()).bind(tokens, tokens)
    model = Llama.from_pretrained("tiny", backend=backend)
    model(jnp.ones((2, 6), jnp.int32), positions=positions, mask=mask)


def ours() -> None:
    _ours("xla")


def ours_by_kernel() -> None:
    _ours("dot_product")


def flax_in_jit() -> None:
    with jax.numpy_dtype_promotion("standard"):
        attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=nnx.Rngs(0))
        mask = nnx.make_causal_mask(jnp.ones((2, 6)))
        x = jnp.ones((2, 6, 16), jnp.float32)
        nnx.jit(lambda module, x: module(x, mask=mask))(attention, x)


def leaking_in_jit() -> None:
    """A triangle one too high, in a jitted attention written by hand."""

    @jax.jit
    def attend(q: jax.Array) -> jax.Array:
        scores = jnp.einsum("btnh,bsnh->bnts", q, q)
        seen = jnp.tril(jnp.ones((6, 6), bool), 1)
        return jax.nn.softmax(jnp.where(seen, scores, -1e9), axis=-1)

    attend(jnp.ones((2, 6, 3, 8)))


def by_name() -> None:
    """Causality, window and lengths as arguments of the kernel."""
    q, lengths = jnp.ones((2, 6, 4, 8), jnp.float32), jnp.asarray([4, 6], jnp.int32)
    with jax.numpy_dtype_promotion("standard"):
        jax.nn.dot_product_attention(
            q, q, q, is_causal=True, local_window_size=(2, 0), key_value_seq_lengths=lengths
        )


def in_vmap() -> None:
    x = jnp.zeros((2, 4, 3, 3))
    jax.vmap(lambda scores: jax.nn.softmax(scores, axis=-1))(x)


def failing() -> None:
    raise RuntimeError("no such weights\nat all")


def without_attention() -> None:
    jax.nn.softmax(jnp.asarray(np.ones((2, 64))))


def with_an_argument(model: str) -> None:
    del model
