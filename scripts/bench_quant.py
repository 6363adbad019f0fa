"""Measure what quantised weights and caches save: bytes of the compiled step, and tokens a second.

All variants are loaded at once and take turns, so that a slow moment of the machine strikes all
alike; figures are medians over rounds, and worth comparing within one run alone.

    python scripts/bench_quant.py [CHECKPOINT] [--rows 1] [--context 32] [--tokens 24] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllama import KVCache, Llama
from jaxllama.checkpoint import open_checkpoint
from jaxllama.generate import feed
from jaxllama.request import bucket


@dataclass(frozen=True)
class Variant:
    """A model and the cache it writes to."""

    dtype: str
    quant: str | None = None
    cache: str | None = None

    @property
    def name(self) -> str:
        """As the table has it."""
        weights = self.dtype if self.quant is None else f"{self.quant} in {self.dtype}"
        return weights if self.cache is None else f"{weights}, {self.cache} cache"


VARIANTS = (
    Variant("f32"),
    Variant("bf16"),
    Variant("f32", "int8"),
    Variant("bf16", "int8"),
    Variant("f32", "int4"),
    Variant("bf16", "int4"),
    Variant("f32", "int8", "int8"),
)


def compiled_bytes(model: Llama, variant: Variant, rows: int, capacity: int) -> dict[str, int]:
    """Return what one compiled decode step reads of weights and cache, and what it writes beside.

    Every weight is an operand of one product, and so read once; what is copied, widened or kept of
    it shows in `temporary`, the buffers that the program has beside its arguments.
    """
    graph, weights = nnx.split(model)
    cache = KVCache.empty(model.config, rows, capacity, variant.cache or model.dtype, apart=True)

    def step(weights: nnx.State, cache: KVCache, tokens: jax.Array) -> tuple[jax.Array, KVCache]:
        return feed(nnx.merge(graph, weights), cache, tokens, jnp.ones(tokens.shape, bool))

    tokens = jax.device_put(np.zeros((rows, 1), np.int32))
    program = jax.jit(step, donate_argnums=1).lower(weights, cache, tokens).compile()
    looked_up = 0 if model.lm_head is None else jax.tree.leaves(model.embed_tokens.weight)[0].nbytes
    return {
        "weights": sum(part.nbytes for part in jax.tree.leaves(weights)) - looked_up,
        "cache": cache.nbytes,
        "temporary": program.memory_analysis().temp_size_in_bytes,
    }


def seconds(model: Llama, variant: Variant, prompts: list[list[int]], tokens: int) -> float:
    """Return how long generating takes."""
    began = time.perf_counter()
    model.generate(prompts, max_new_tokens=tokens, eos_ids=(), cache_dtype=variant.cache)
    return time.perf_counter() - began


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", nargs="?", default="smollm2")
    for option, usual in (("rows", 1), ("context", 32), ("tokens", 24), ("rounds", 5)):
        parser.add_argument(f"--{option}", type=int, default=usual)
    asked = parser.parse_args()
    checkpoint = open_checkpoint(asked.checkpoint)
    models = {
        one: Llama.from_pretrained(checkpoint, dtype=one.dtype, quant=one.quant, form="fused")
        for one in VARIANTS
    }
    capacity = bucket(asked.context) + bucket(asked.tokens + 1)
    read = {v: compiled_bytes(m, v, asked.rows, capacity) for v, m in models.items()}
    ids = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, asked.context)
    prompts = [ids.tolist()] * asked.rows
    speeds: dict[Variant, list[float]] = {one: [] for one in models}
    for variant, model in models.items():  # compiles
        for tokens in (1, asked.tokens + 1):
            seconds(model, variant, prompts, tokens)
    for number in range(asked.rounds):
        order = list(models)[number % len(models) :] + list(models)[: number % len(models)]
        for variant in order:
            first = seconds(models[variant], variant, prompts, 1)
            whole = seconds(models[variant], variant, prompts, asked.tokens + 1)
            speeds[variant].append(asked.rows * asked.tokens / (whole - first))
    print(
        f"{asked.checkpoint}: {asked.rows} rows, {asked.context} tokens before, {asked.tokens} "
        f"written, {asked.rounds} rounds; load {os.getloadavg()[0]:.1f} of {os.cpu_count()}"
    )
    print(
        f"{'':24}{'weights':>9}{'of bf16':>9}{'cache':>8}{'beside':>8}"
        f"{'tokens/s':>10}{'vs bf16':>9}"
    )
    plain = VARIANTS[1]
    for variant, found in speeds.items():
        sizes = read[variant]
        against = statistics.median(
            one / other for one, other in zip(found, speeds[plain], strict=True)
        )
        print(
            f"{variant.name:24}{sizes['weights'] / 1e6:>6.0f} MB"
            f"{sizes['weights'] / read[plain]['weights']:>9.2f}{sizes['cache'] / 1e6:>5.1f} MB"
            f"{sizes['temporary'] / 1e6:>5.1f} MB{statistics.median(found):>10.1f}{against:>9.2f}"
        )


if __name__ == "__main__":
    main()
