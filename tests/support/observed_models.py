"""Functions that run small models of several libraries, for `parity lint --from`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jax.nn import softmax
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


def _sdpa(**options: object) -> None:
    q = torch.ones(2, 4, 1, 16)
    torch.nn.functional.scaled_dot_product_attention(
        q, torch.ones(2, 4, 9, 16), torch.ones(2, 4, 9, 16), **options
    )


def causal_at_the_top_left() -> None:
    """One query and nine keys: it sees the first alone."""
    _sdpa(is_causal=True)


def folded_sdpa() -> None:
    """Rows and heads in one axis, [B*N, T, S], with the padding of each row."""
    seen = torch.tril(torch.ones(6, 6, dtype=torch.bool))[None] & torch.tensor(VALID)[:, None] > 0
    q = torch.ones(8, 6, 16)
    folded = torch.repeat_interleave(seen, 4, 0)
    torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=folded)


def bfloat16_sdpa() -> None:
    seen = torch.tril(torch.ones(6, 6, dtype=torch.bool))
    q = torch.ones(2, 4, 6, 16, dtype=torch.bfloat16)
    bias = torch.where(seen, 0.0, -torch.inf).to(torch.bfloat16)
    torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=bias)


def added_to_scores() -> None:
    """-1e4 is added, so that every hidden cell has another number."""
    scores = 5 * torch.randn(2, 4, 6, 6) + torch.where(torch.tril(torch.ones(6, 6)) > 0, 0.0, -1e4)
    torch.softmax(scores, -1)


def softmax_with_where() -> None:
    scores = jnp.ones((2, 4, 6, 6), jnp.float32)
    seen = jnp.broadcast_to(jnp.tril(jnp.ones((6, 6), bool)), scores.shape)
    jax.nn.softmax(scores, axis=-1, where=seen)


def softmax_imported_by_name() -> None:
    softmax(jnp.where(jnp.tril(jnp.ones((6, 6), bool), 1)[None, None], 1.0, -1e9), axis=-1)


def _router(experts: int) -> None:
    scores = torch.randn(2, 6, experts)
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(2).indices, True)
    torch.softmax(torch.where(kept, scores, -torch.inf), -1)


def router_of_experts() -> None:
    _router(6)
    _router(8)


def banned_tokens() -> None:
    logits = torch.randn(2, 6, 64)
    logits[..., 3:9] = -torch.inf
    torch.softmax(logits, -1)


def leaving() -> None:
    raise SystemExit(3)
