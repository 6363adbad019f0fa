"""Time the parts that docs/performance.md has a table of, each beside what it took the place of.

Shapes are those of SmolLM2-135M, but for compiling: of a small model, by the processor's seconds.
Run it on a machine that does nothing else.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllama import Llama
from jaxllama.attention import attend
from jaxllama.attention.blockwise import attend_blockwise
from jaxllama.attention.reference import attend_reference
from jaxllama.config import LlamaConfig
from jaxllama.forms import Form
from jaxllama.layers.linear import product
from jaxllama.masks import Tokens, causal
from jaxllama.presets import PRESETS
from jaxllama.taps import untapped

N, K, H, LAYERS, ROUNDS, COPIES = 9, 3, 64, 30, 9, 24
# Rounds of compiling.
COMPILED = 5


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


def stages(config: LlamaConfig, form: Form) -> tuple[float, float]:
    """Return the processor's seconds to trace a step of one token, and to compile it."""
    model = nnx.eval_shape(lambda: Llama(config, dtype="float32", form=form, rngs=nnx.Rngs(0)))

    def forward(model: Llama, ids: Any) -> Any:
        row = Tokens.contiguous(jnp.array([1], jnp.int32), 1)
        mask = causal().bind(row, row)
        return model(ids, positions=jnp.zeros((1, 1), jnp.int32), mask=mask)[0]

    jax.clear_caches()
    begun = time.process_time()
    traced = jax.jit(forward).lower(model, jax.ShapeDtypeStruct((1, 1), jnp.int32))
    between = time.process_time()
    traced.compile()
    return between - begun, time.process_time() - between


def compiling() -> None:
    """Many stacked layers and few, and layers unrolled where they were scanned."""
    small = LlamaConfig.from_hf(
        PRESETS["llama-3.2-1b"].to_hf()
        | {"hidden_size": 64, "intermediate_size": 160, "vocab_size": 256, "head_dim": 16}
        | {"num_attention_heads": 4, "num_key_value_heads": 2}
        | {"bos_token_id": 1, "eos_token_id": 2}
    )
    for one, other in (((126, "stacked"), (8, "stacked")), ((30, "unrolled"), (30, "stacked"))):
        found: dict[Any, list[tuple[float, float]]] = {one: [], other: []}
        for number in range(1 + COMPILED):  # the first brings what JAX itself makes once
            for key, taken in found.items():
                layers, form = key
                made = stages(small.replace(num_hidden_layers=layers), form)
                taken.extend([made] if number else [])
        for index, stage in enumerate(("trace", "compile")):
            medians = [statistics.median(t[index] for t in found[key]) for key in (one, other)]
            ratio = statistics.median(
                a[index] / b[index] for a, b in zip(found[one], found[other], strict=True)
            )
            named = [f"{layers} {form} layers" for layers, form in (one, other)]
            print(
                f"{stage}: {named[0]} {medians[0]:.2f} s, {named[1]} {medians[1]:.2f} s, "
                f"ratio {ratio:.2f}"
            )


if __name__ == "__main__":
    attention_of_a_prompt()
    attention_of_a_token()
    products()
    compiling()
