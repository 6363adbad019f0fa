"""What a forward pass cannot do without: bytes to read, products to make.

Shapes: as in `jaxllama.model`.
"""

from __future__ import annotations

from jaxllama.bench.measures import Measure
from jaxllama.config import LlamaConfig
from jaxllama.quantisation import step_bytes


def products(config: LlamaConfig) -> list[tuple[int, int]]:
    """Return (in, out) of a layer's products: q, k and v as one, o, gate and up as one, down."""
    D, F, H = config.hidden_size, config.intermediate_size, config.head_dim
    N, K = config.num_attention_heads, config.num_key_value_heads
    return [(D, (N + 2 * K) * H), (N * H, D), (D, 2 * F), (F, D)]


def prefill_flops(config: LlamaConfig, tokens: int) -> int:
    """Return the operations of a prompt's products, a multiplication and an addition being two.

    Attention counts the keys that causality lets a query see, the head the last token alone.

    Args:
        config: the model's numbers.
        tokens: T of the prompt.
    """
    layer = tokens * sum(i * o for i, o in products(config))
    seen = tokens * (tokens + 1) // 2
    attention = 2 * seen * config.num_attention_heads * config.head_dim
    head = config.hidden_size * config.vocab_size
    return 2 * (config.num_hidden_layers * (layer + attention) + head)


def floor_work(config: LlamaConfig, measure: Measure) -> int:
    """Return what a timed run of a measure takes at least: operations of a prefill, else bytes."""
    if measure.kind == "prefill":
        return prefill_flops(config, measure.prompt)
    return measure.new * step_bytes(config, measure.dtype)
