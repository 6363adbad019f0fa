"""Public functions inside jit, vmap and grad, with their arguments closed over.

Inside `jit` an operation of JAX is traced even where its arguments exist. A check that asks such a
value for a number dies there, in the most usual of training steps.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_llama

from jaxllama import (
    KVCache,
    Llama,
    Sampling,
    Taps,
    attention,
    generate,
    health,
    loss,
    rope,
    sampling,
)
from jaxllama.errors import InputError
from jaxllama.masks import BoundMask, Mask, Tokens, causal, explicit, padding, predicate, segments

CONFIG = small_llama.CONFIG
B, T = 2, 5
# Of jax.numpy, as users write them: on the host it has to be computed, not traced.
EVEN = causal() & predicate(lambda cells: jnp.asarray(cells.k_position) % 2 == 0)


class Stage:
    """A small model and what its functions take."""

    def __init__(self) -> None:
        self.model = small_llama.build(CONFIG, "float32")
        self.ids = jnp.asarray(small_llama.random_tokens(CONFIG, B, T))
        self.positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
        self.valid = jnp.ones((B, T), bool)
        self.tokens = Tokens(self.positions, self.valid, jnp.zeros((B, T), jnp.int32))
        self.mask = (causal() & padding()).bind(self.tokens, self.tokens)
        self.cache = KVCache.empty(CONFIG, B, 8, jnp.float32)
        self.pending = self.cache.extend(self.positions, self.valid)
        self.slots_mask = causal().bind(self.tokens, self.pending.tokens())
        self.logits, self.full = self.run(mask=self.slots_mask, cache=self.pending)
        self.last = self.logits[:, -1]
        self.order = jnp.argsort(self.last, descending=True)
        self.seen = self.last > 0
        self.keys = jax.vmap(jax.random.key)(jnp.arange(B, dtype=jnp.uint32))
        self.half, self.two = jnp.float32(0.5), jnp.int32(2)
        shape = B, T, CONFIG.num_attention_heads, CONFIG.head_dim
        self.q = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
        self.k = self.q[:, :, : CONFIG.num_key_value_heads]
        self.frequencies = jnp.asarray(rope.inv_freq(CONFIG), jnp.float32)
        self.cos_sin = rope.rope_cos_sin(self.frequencies, self.positions, jnp.float32)
        self.unknown_ids, self.too_long = self.ids.at[0, 0].set(999), jnp.asarray([2, 6])
        self.nine = jnp.zeros((B, 9), jnp.int32), jnp.ones((B, 9), bool)
        self.ninth = jnp.int32(9)
        taps = Taps()
        self.run(tap=taps)
        self.shown = taps.recorded()
        self.weights = self.shown["layers.0.attn_probs"]
        self.embedded = self.model.embed_tokens(self.ids, jnp.float32)

    def run(self, **options: Any) -> Any:
        return self.model(self.ids, **{"positions": self.positions, "mask": self.mask} | options)

    def saved(self) -> Any:
        with tempfile.TemporaryDirectory() as work:
            return dict(self.model.save_pretrained(f"{work}/out").digests)

    def bound(self, mask: Mask, **policy: Any) -> Any:
        return mask.bind(self.tokens, self.tokens, **policy).to_bool()

    def attend(self, **options: Any) -> Any:
        return attention.attend(self.q, self.k, self.k, self.mask, scale=0.3, **options)


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage()


CALLS: dict[str, Callable[[Stage], Any]] = {
    "Llama.__call__": lambda s: s.run()[0],
    "Llama.__call__ with a cache": lambda s: s.run(mask=s.slots_mask, cache=s.pending)[0],
    "Llama.__call__ with taps": lambda s: s.run(tap=Taps({"embed": s.embedded}))[0],
    "Llama.hidden": lambda s: s.model.hidden(s.ids, positions=s.positions, mask=s.mask)[0],
    "Llama.embed": lambda s: s.model.embed(s.ids, s.positions, s.mask)[0],
    "Llama.layer": lambda s: s.model.layer(jnp.int32(1)).mlp.down_proj.weight[...],
    "Llama.head": lambda s: s.model.head(s.model.embed_tokens(s.ids, jnp.float32)),
    "Llama.generate": lambda s: s.model.generate(np.asarray(s.ids), max_new_tokens=2).tokens,
    "generate": lambda s: (
        generate.generate(s.model, s.ids, max_new_tokens=2, watch=lambda _: {}).tokens
    ),
    "Llama.save_pretrained": lambda s: s.saved(),
    "KVCache.empty": lambda s: KVCache.empty(CONFIG, B, 8, jnp.float32).lengths,
    "KVCache.tokens": lambda s: s.cache.tokens().valid,
    "KVCache.extend": lambda s: s.cache.extend(s.positions, s.valid).slots,
    "KVCache.rewind": lambda s: s.full.rewind(jnp.asarray([2, 3])).lengths,
    "KVCache.write": lambda s: s.pending.write(0, s.k, s.k).k,
    "KVCache.of_layer": lambda s: s.pending.of_layer(1)[0],
    "KVCache.apart": lambda s: s.pending.apart().k[1],
    "KVCache.stacked": lambda s: s.pending.apart().stacked().k,
    "KVCache.settle": lambda s: s.pending.settle().lengths,
    "KVCache.on_mesh": lambda s: s.pending.on_mesh(None).lengths,
    "KVCache.check_fits": lambda s: s.pending.check_fits(CONFIG, (B, T)),
    "next_token_loss": lambda s: loss.next_token_loss(s.logits, s.ids, valid=s.valid),
    "successors": lambda s: loss.successors(s.ids, valid=s.valid)[0],
    "token_losses": lambda s: loss.token_losses(s.logits, s.ids),
    "attend": lambda s: s.attend(),
    "attend by dot_product": lambda s: s.attend(backend="dot_product"),
    "check_backend": lambda s: attention.check_backend("xla", jnp.dtype("float32"), 8),
    "inv_freq": lambda s: rope.inv_freq(CONFIG),
    "rope_cos_sin": lambda s: rope.rope_cos_sin(s.frequencies, s.positions, jnp.float32),
    "apply_rope": lambda s: rope.apply_rope(s.q, *s.cos_sin),
    "choose": lambda s: sampling.choose(s.last, s.keys, {"temperature": s.half, "top_k": s.two}),
    "filter_logits": lambda s: sampling.filter_logits(s.last, {"top_p": s.half, "min_p": s.half}),
    "penalise": lambda s: sampling.penalise(s.last, s.seen, s.half),
    "top_k": lambda s: sampling.top_k(s.last, s.order, s.two),
    "top_p": lambda s: sampling.top_p(s.last, s.order, s.half),
    "min_p": lambda s: sampling.min_p(s.last, s.half),
    "Sampling.values": lambda s: Sampling(temperature=0.5).values(),
    "Mask.bind": lambda s: s.bound(causal() & padding() & segments()),
    "Mask.bind, empty rows refused": lambda s: s.bound(causal() & padding(), empty_row="error"),
    "Mask.bind, a predicate": lambda s: s.bound(EVEN, empty_row="error"),
    "Mask.bind, explicit": lambda s: s.bound(explicit(s.mask.to_bool()), empty_row="self"),
    "BoundMask.to_bool": lambda s: s.mask.to_bool(),
    "BoundMask.to_bias": lambda s: s.mask.to_bias(jnp.float32),
    "BoundMask.live": lambda s: s.mask.live(),
    "BoundMask.kernel_arguments": lambda s: s.mask.kernel_arguments().live,
    "BoundMask.explain": lambda s: s.mask.explain(1, 0),
    "BoundMask.explain, a predicate": lambda s: EVEN.bind(s.tokens, s.tokens).explain(1, 0),
    "BoundMask.block": lambda s: s.mask.block(np.arange(2), np.arange(3)),
    "BoundMask.blocks": lambda s: next(EVEN.bind(s.tokens, s.tokens).blocks())[1],
    "BoundMask.draw": lambda s: EVEN.bind(s.tokens, s.tokens).draw(),
    "BoundMask.__str__": lambda s: str(EVEN.bind(s.tokens, s.tokens)),
    "entropy": lambda s: health.entropy(s.weights, s.mask.to_bool()),
    "largest_logit": lambda s: health.largest_logit(s.weights, s.mask.to_bool()),
    "rank_residual": lambda s: health.rank_residual(s.weights[:, 0], s.valid),
    "health_figures": lambda s: health.health_figures(s.shown, s.valid),
    "map_figures": lambda s: health.map_figures(s.weights, s.mask.to_bool()).sink,
    "rollout": lambda s: health.rollout(s.weights[None], s.mask.to_bool()),
    "stream_figures": lambda s: (
        health.stream_figures(s.q[:, :, 0], s.q[:, :, 1], s.q, s.valid).cosine
    ),
    "gradient_norms": lambda s: (
        health.gradient_norms(
            dict.fromkeys(("q_proj", "k_proj", "v_proj"), s.q[..., 0]), T, 1
        ).query
    ),
    "mean_of": lambda s: health.figures.mean_of(s.logits[..., 0], s.valid),
    "widened": lambda s: health.figures.widened(s.q),
    "Tokens.contiguous": lambda s: Tokens.contiguous(jnp.asarray([2, 5]), T).valid,
}
TRANSFORMATIONS: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "jit": lambda f: jax.jit(f)(1.0),
    "vmap of grad": lambda f: jax.vmap(jax.grad(f))(jnp.ones(2)),
}


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("call", CALLS)
def test_closed_over_arguments_are_checked_and_computed_with(
    stage: Stage, call: str, transformation: str
) -> None:
    wanted = CALLS[call](stage)
    found: list[Any] = []

    def called(x: Any) -> Any:
        value = CALLS[call](stage)
        if not arrays(value):
            assert value == wanted
        jax.debug.callback(lambda *got: found.append(got), *arrays(value))
        return x * 2.0

    TRANSFORMATIONS[transformation](called)
    jax.effects_barrier()
    for one, other in zip(found[0], arrays(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def arrays(value: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(value) if hasattr(leaf, "dtype")]


PUBLIC = [
    *(Llama, KVCache, BoundMask, attention, generate, loss, rope, sampling),
    *(health.figures, health.maps, health.states),
]
# Not of arrays, or a part of a program: `feed` is one of that of `generate`.
LEFT_OUT = {
    "BoundMask.tree_flatten_with_keys",
    "BoundMask.tree_unflatten",
    "Llama.from_pretrained",
    "feed",
}


def test_every_public_function_of_arrays_is_in_the_table() -> None:
    tabled = {call.split(" ")[0].rstrip(",") for call in CALLS}
    assert {name for home in PUBLIC for name in functions(home)} - tabled == LEFT_OUT


def functions(home: Any) -> Iterator[str]:
    """Yield the public functions that a class or a module defines itself."""
    module = home.__module__ if inspect.isclass(home) else home.__name__
    for name, value in vars(home).items():
        function = getattr(value, "__func__", value)
        own = inspect.isfunction(function) and function.__module__ == module
        if own and not name.startswith("_"):
            yield f"{home.__name__}.{name}" if inspect.isclass(home) else name


def step(s: Stage, tokens: Any, scale: float) -> Any:
    logits, _ = s.model(tokens, positions=s.positions, mask=s.mask)
    return loss.next_token_loss(logits * scale, tokens, valid=s.valid)


def explain(s: Stage, positions: Any) -> Any:
    tokens = Tokens(positions[None], s.valid[:1])
    return causal().bind(tokens, tokens).explain(1, 0)


REFUSED: dict[str, Callable[[Stage], Any]] = {
    "token ids": lambda s: jax.grad(lambda x: step(s, s.unknown_ids, x))(1.0),
    "row 0 would hold 9 tokens": lambda s: s.cache.extend(*s.nine).k,
    "row 1 holds 5 tokens": lambda s: s.full.rewind(s.too_long).k,
    "real queries see no key": lambda s: s.bound(~causal(), empty_row="error"),
    "expected 0 to": lambda s: s.model.layer(s.ninth).mlp,
    "being traced": lambda s: jax.vmap(lambda p: explain(s, p))(s.positions),
    "loop runs on the host": lambda s: jax.vmap(
        lambda ids: s.model.generate(ids, max_new_tokens=1).tokens
    )(s.ids[None]),
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_is_wrong_with_closed_over_arguments_is_refused(stage: Stage, named: str) -> None:
    with pytest.raises(InputError, match=named):
        jax.jit(lambda x: (REFUSED[named](stage), x)[1])(1.0)
