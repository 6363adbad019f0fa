"""Tunix's Llama 3 in Flax NNX, with a cache and loop as its sampler has them.

Source:
    tunix/models/llama3/model.py and tunix/generate/sampler.py of google-tunix 0.1.7.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
import warnings
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllama.bench.measures import UNTIMED, Measure, prompt_of
from jaxllama.bench.peers.base import Run
from jaxllama.checkpoint import Checkpoint
from jaxllama.checkpoint.names import HEAD
from jaxllama.dtypes import parse
from jaxllama.errors import InputError


class TunixPeer:
    """Tunix's model with a checkpoint's weights.

    Args:
        name: of the variant, of which there is one.
        checkpoint: opened.
        dtype: of weights, arithmetic and cache.

    Raises:
        InputError: rotary scaling, which this model does not have.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, dtype: str) -> None:
        self.dtype = parse(dtype)
        self.model = _load(checkpoint, self.dtype)
        self.graph, self.weights = nnx.split(self.model)

    def prepare(self, measure: Measure) -> Run:
        """Return its prefill, followed by its loop of as many steps."""
        rows = prompt_of(measure, self.model.config.vocab_size)
        slots = measure.context

        @jax.jit
        def prefill(weights: Any, ids: jax.Array) -> tuple[jax.Array, Any]:
            B, T = ids.shape
            positions = jnp.broadcast_to(jnp.arange(T), (B, T))
            mask = jnp.broadcast_to(jnp.arange(slots) <= positions[..., None], (B, T, slots))
            return self._call(weights, ids, positions, self._empty(B, slots), mask)

        @partial(jax.jit, donate_argnums=(2,))
        def write(
            weights: Any, token: jax.Array, cache: Any, place: jax.Array, steps: jax.Array
        ) -> tuple[jax.Array, Any, jax.Array]:
            B = len(token)
            written = jnp.zeros((B, slots), jnp.int32)

            def step(i: jax.Array, state: Any) -> Any:
                token, cache, written = state
                positions = jnp.full((B, 1), place + i)
                mask = jnp.broadcast_to(jnp.arange(slots) <= positions[..., None], (B, 1, slots))
                token, cache = self._call(weights, token[:, None], positions, cache, mask)
                return token, cache, written.at[:, i].set(token)

            return jax.lax.fori_loop(0, steps, step, (token, cache, written))

        def run() -> tuple[float, list[list[int]]]:
            started = time.perf_counter()
            token, cache = prefill(self.weights, jnp.asarray(rows, jnp.int32))
            first = np.asarray(token)[:, None]
            if measure.kind == "prefill":
                return time.perf_counter() - started, first.tolist()
            place, before, new = measure.prompt, UNTIMED - 1, measure.new
            token, cache, some = write(self.weights, token, cache, place, before)
            jax.block_until_ready(token)
            started = time.perf_counter()
            token, cache, rest = write(self.weights, token, cache, place + before, new)
            jax.block_until_ready(token)
            seconds = time.perf_counter() - started
            written = np.hstack([first, np.asarray(some)[:, :before], np.asarray(rest)[:, :new]])
            return seconds, written.tolist()

        return run

    def _call(
        self, weights: Any, ids: jax.Array, positions: jax.Array, cache: Any, mask: jax.Array
    ) -> tuple[jax.Array, Any]:
        model = nnx.merge(self.graph, weights)
        logits, cache = model(ids, positions, cache, mask)
        return jnp.argmax(logits[:, -1], axis=-1).astype(jnp.int32), cache

    def _empty(self, batch: int, slots: int) -> dict[str, Any]:
        config = self.model.config
        shape = (batch, slots, config.num_kv_heads, config.head_dim)
        return {
            f"layer_{i}": {
                "k": jnp.zeros(shape, self.dtype),
                "v": jnp.zeros(shape, self.dtype),
                "end_index": jnp.zeros((batch,), jnp.int32),
            }
            for i in range(config.num_layers)
        }


open_peer = TunixPeer


def _code(theta: float) -> ModuleType:
    """Import Tunix's Llama alone: the package's front page imports training frameworks."""
    if "tunix" not in sys.modules:
        found = importlib.util.find_spec("tunix")
        assert found is not None and found.submodule_search_locations is not None
        front = ModuleType("tunix")
        front.__path__ = list(found.submodule_search_locations)
        sys.modules["tunix"] = front
    code = importlib.import_module("tunix.models.llama3.model")
    # Its attention leaves out the config's theta, and 1e6 counts for every model.
    vars(code)["apply_rope"] = partial(code.apply_rope, rope_theta=theta)
    return code


def _load(checkpoint: Checkpoint, dtype: np.dtype) -> Any:
    c = checkpoint.config
    if c.rope_scaling is not None:
        raise InputError("Tunix's Llama 3 has no rotary scaling, and this checkpoint has one")
    code = _code(c.rope_theta)
    config = code.ModelConfig(
        num_layers=c.num_hidden_layers,
        vocab_size=c.vocab_size,
        embed_dim=c.hidden_size,
        hidden_dim=c.intermediate_size,
        num_heads=c.num_attention_heads,
        head_dim=c.head_dim,
        num_kv_heads=c.num_key_value_heads,
        rope_theta=int(c.rope_theta),
        norm_eps=c.rms_norm_eps,
        weight_tying=c.tie_word_embeddings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the names its parameters have
        model = nnx.eval_shape(lambda: code.Llama3(config, rngs=nnx.Rngs(0)))
        graph, state = nnx.split(model)
        flat = dict(nnx.to_flat_state(state))
        for path, variable in flat.items():
            name = _name(path)
            if name is None:
                raise ValueError(f"Tunix's parameter {path} has no known name")
            values = checkpoint.read(name)
            turned = values if values.ndim == 1 or path[0] == "embedder" else values.T
            flat[path] = variable.replace(jnp.asarray(turned.reshape(variable.shape), dtype))
        return nnx.merge(graph, nnx.from_flat_state(flat))


def _name(path: tuple[Any, ...]) -> str | None:
    """Return the canonical name of one of its parameters."""
    words = [str(word) for word in path]
    if words[0] == "layers":
        part = {"attn": "self_attn"}.get(words[2], words[2])
        return ".".join(["model.layers", words[1], part, *words[3:-1], "weight"])
    return {
        "embedder": "model.embed_tokens.weight",
        "final_norm": "model.norm.weight",
        "lm_head": HEAD,
    }.get(words[0])
