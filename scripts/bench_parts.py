"""Time the parts that docs/performance.md has a table of, each beside what it took the place of.

Shapes are those of SmolLM2-135M. Run it on a machine that does nothing else.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxllama.attention import attend
from jaxllama.attention.blockwise import attend_blockwise
from jaxllama.attention.reference import attend_reference
from jaxllama.layers.linear import product
from jaxllama.taps import untapped

N, K, H, LAYERS, ROUNDS, COPIES = 9, 3, 64, 30, 9, 24


def seconds(function: Callable[..., Any], *operands: Any) -> float:
    """Return the least of some rounds, compiled before."""
    run = jax.jit(function)
    jax.block_until_ready(run(*operands))
    taken = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        jax.block_until_ready(run(*operands))
        taken.append(time.perf_counter() - begun)
    return min(taken)


def attention_of_a_prompt() -> None:
    """Whole maps, and blocks."""
    q, k = (jnp.ones((1, length, heads, H)) for length, heads in ((512, N), (640, K)))
    mask = (jnp.arange(512)[:, None] >= jnp.arange(640)[None])[None]
    whole = seconds(lambda q, k: attend_reference(q, k, k, mask, 0.125, untapped), q, k)
    blocks = seconds(lambda q, k: attend_blockwise(q, k, k, mask, 0.125, 64), q, k)
    print(f"512 queries on 640 keys: whole maps {1e3 * whole:.1f} ms, blocks {1e3 * blocks:.1f} ms")


def attention_of_a_token() -> None:
    """A cache in one array of all layers, and one that is apart by layers and heads."""
    rows, slots = 8, 640
    q, mask = jnp.ones((rows, 1, N, H)), jnp.ones((rows, 1, slots), bool)
    stacked = jnp.ones((LAYERS, rows, slots, K, H))
    apart = tuple(jnp.ones((rows, K, slots, H)) for _ in range(LAYERS))

    def through(q: Any, held: Any, order: Callable[[Any], Any]) -> Any:
        for layer in range(LAYERS):
            k = order(held[layer])
            q = q + attend(q, k, k, mask, scale=0.125)
        return q

    one = seconds(lambda q, held: through(q, held, lambda k: k), q, stacked)
    other = seconds(lambda q, held: through(q, held, lambda k: k.swapaxes(1, 2)), q, apart)
    one, other = 1e3 * one, 1e3 * other
    print(f"8 rows on 640 slots, {LAYERS} layers: stacked {one:.1f} ms, apart {other:.1f} ms")


def products() -> None:
    """A plain product, and the one that says in what it sums."""
    for dtype, rows in (("bfloat16", 1), ("bfloat16", 8), ("bfloat16", 512), ("float32", 8)):
        x = jnp.ones((rows, 576), dtype)
        weights = [jnp.ones((3072, 576), dtype) for _ in range(COPIES)]
        plain = seconds(lambda x, ws: [jnp.einsum("ri,oi->ro", x, w) for w in ws], x, weights)
        own = seconds(lambda x, ws: [product(x, w, x.dtype) for w in ws], x, weights)
        read = COPIES * weights[0].nbytes / 1e9
        work = 2 * rows * COPIES * weights[0].size / 1e9
        for name, taken in (("plain", plain), ("ours", own)):
            print(f"{dtype}, {rows} rows, {name}: {read / taken:.1f} GB/s, {work / taken:.0f} GF")


if __name__ == "__main__":
    attention_of_a_prompt()
    attention_of_a_token()
    products()
