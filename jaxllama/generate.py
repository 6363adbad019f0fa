"""Writing text: prefill and decode loop as one compiled program.

The program runs until every row is finished, or for a given number of tokens. Streaming and stop
strings use the second: the host calls the *same* program again for the next few tokens, looks at
them in between, and may mark rows as finished. A callback from inside the loop would save the
re-entry, half a millisecond; but an exception or Ctrl-C in the host's code would then break the
device program, and not every backend can call back.

Prompts are right-padded to a power of two and never longer than needed; pads leave nothing in
the cache. Lengths, limits, seeds and sampling values are arguments of the program, so that only
a new bucket, batch size, or set of active sampling settings compiles anew.

Shapes: B batch, T prompt bucket, M bucket of new tokens, S cache slots, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from numpy.typing import DTypeLike

from jaxllama.attention import knows_rules
from jaxllama.cache import KVCache
from jaxllama.command_line.notebook import html_table
from jaxllama.concrete import computed, is_traced
from jaxllama.dtypes import at_least_float32
from jaxllama.errors import InputError
from jaxllama.masks import Tokens, causal, padding
from jaxllama.model import Llama
from jaxllama.overflow import not_finite
from jaxllama.request import Request, bucket, check_request
from jaxllama.sampling import GREEDY, Sampling, choose
from jaxllama.sharding import ModelSharding

FinishReason = Literal["eos", "stop", "length"]
Prompts = (
    Sequence[Sequence[int] | Int[np.ndarray, " _"] | Int[Array, " _"]]
    | Int[np.ndarray, "B T"]
    | Int[Array, "B T"]
)
Watcher = Callable[[list[list[int]]], Mapping[int, int]]


# Rows, and characters of each, that a summary has.
_MOST_ROWS, _MOST_SHOWN = 8, 200


@dataclass(frozen=True, eq=False)
class Generation:
    """What was written for each row.

    Attributes:
        tokens: new tokens, a closing eos included; -1 past a row's end.
        lengths: number of new tokens per row.
        logprobs: natural log-probability of each token under the model itself, before penalty,
            temperature and filters; 0 past a row's end, so that a row sums to that of its text.
        finish_reasons: "eos", "stop" (the watcher's decision) or "length", per row.
        seeds: what each row drew from.
        cache: prompt and new tokens but each row's last, which nothing has read yet: start the
            next turn's prompt with it.
    """

    tokens: Int[np.ndarray, "B M"]
    lengths: Int[np.ndarray, " B"]
    logprobs: Float[np.ndarray, "B M"]
    finish_reasons: tuple[FinishReason, ...]
    seeds: tuple[int, ...]
    cache: KVCache

    def rows(self) -> list[list[int]]:
        """Return each row's new tokens as a list of its own length."""
        return _rows(self.tokens, self.lengths)

    def __str__(self) -> str:
        return "\n".join(map(": ".join, self.summary(self._ids())))

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return html_table("Generation", self.summary(self._ids()))

    def summary(self, shown: Sequence[str]) -> list[tuple[str, str]]:
        """Return in a few lines what was written: of each row how much, why it ended, and what.

        Args:
            shown: what is shown of each row's tokens, in their place.
        """
        count = len(self.seeds)
        lines = [("rows", f"{count}, {int(self.lengths.sum())} new tokens")]
        for row in range(min(count, _MOST_ROWS)):
            text = (
                shown[row] if len(shown[row]) <= _MOST_SHOWN else f"{shown[row][:_MOST_SHOWN]}..."
            )
            ended = f"{int(self.lengths[row])} tokens, ended by {self.finish_reasons[row]}"
            lines.append((f"row {row}", f"{ended}: {text}"))
        return [*lines, *([("and", f"{count - _MOST_ROWS} more")] if count > _MOST_ROWS else [])]

    def _ids(self) -> list[str]:
        return [" ".join(map(str, row)) for row in self.rows()]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    """What one call of the program hands to the next; donated, so updated in place."""

    cache: KVCache
    step: Int[Array, ""]  # tokens written so far in unfinished rows; 0: prefill is to come
    last: Int[Array, " B"]
    done: Bool[Array, " B"]
    tokens: Int[Array, "B M"]
    logprobs: Float[Array, "B M"]
    lengths: Int[Array, " B"]
    seen: Bool[Array, "B V"] | None  # only with a repetition penalty


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Inputs:
    """What stays the same throughout."""

    prompt: Int[Array, "B T"]
    prompt_lengths: Int[Array, " B"]
    keys: Key[Array, " B"]
    sampling: dict[str, Array]
    eos: Int[Array, " E"]
    # The cache starts empty: prompts then lie at positions and slots 0, 1, 2, ..., and a kernel can
    # be told causality and lengths by name. Only said to backends that make use of it.
    fresh: bool = field(default=False, metadata={"static": True})


def generate(
    model: Llama,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    eos_ids: Sequence[int] | None = None,
    seed: int | Sequence[int] = 0,
    cache: KVCache | None = None,
    cache_dtype: DTypeLike | None = None,
    watch: Watcher | None = None,
    every: int = 1,
) -> Generation:
    """Continue each prompt until an end-of-sequence token or `max_new_tokens`.

    Args:
        model: the model.
        prompts: token ids, one sequence per row, of any lengths; or an array [B, T] without pads.
        max_new_tokens: most tokens to write per row.
        sampling: how a token is chosen; greedy if not given.
        eos_ids: tokens that end a row; the checkpoint's own if None, () for none.
        seed: one seed, from which each row's is made, or a sequence of one per row. A row's draws
            depend on its own alone: with `seed=[found.seeds[i]]`, row i draws the same alone.
        cache: continue after what this cache holds (it is consumed; go on with the result's);
            None starts afresh with one of the right size.
        cache_dtype: of keys and values in the cache; the model's dtype if None.
        watch: called with the rows so far after each `every` tokens; returns {row: length} for
            rows to be ended and cut to that many tokens.
        every: tokens between two calls of `watch`.

    Raises:
        InputError: prompts, limits, seeds, ids or cache that do not fit the model or each other,
            all named at once; or a model whose logits are not finite.
    """
    if is_traced(nnx.state(model), prompts, seed, cache):
        raise InputError(
            "generate: model, prompts, seed or cache is being traced by jit, vmap or grad, but its"
            " loop runs on the host; call it outside of them, or call the model on a KVCache"
        )
    request = check_request(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        eos_ids=eos_ids,
        seed=seed,
        cache=cache,
        cache_dtype=cache_dtype,
        every=every,
    )
    sampling = GREEDY if sampling is None else sampling
    with computed():  # inside a `jit` that has closed over all of them
        state = _begin(model, request, sampling, cache)
        inputs = _inputs(request, sampling, fresh=cache is None and knows_rules(model.backend))
        return _write_all(model, request, state, inputs, watch, every)


def _write_all(
    model: Llama,
    request: Request,
    state: _State,
    inputs: _Inputs,
    watch: Watcher | None,
    every: int,
) -> Generation:
    """Run the program until all rows are done, `every` tokens at a time where somebody watches."""
    graph, weights = nnx.split(model)
    held = np.array(state.cache.lengths)
    cuts: dict[int, int] = {}
    written, most = 0, request.max_new_tokens
    while written < most:
        written = most if watch is None else min(written + every, most)
        state = _advance(graph, weights, state, inputs, jax.device_put(np.int32(written)))
        done = np.array(state.done)
        if watch is not None:
            new_cuts = watch(_rows(np.array(state.tokens), np.array(state.lengths)))
            cuts = {**new_cuts, **cuts}
            done[list(new_cuts)] = True
            state = dataclasses.replace(state, done=_put(model, done))
        if done.all():
            break
    return _finish(model, state, request, held, cuts)


def _begin(model: Llama, request: Request, sampling: Sampling, cache: KVCache | None) -> _State:
    B, M = len(request.prompts), bucket(request.max_new_tokens)
    if cache is None:
        capacity = bucket(request.longest) + M
        apart = model.form != "stacked"
        cache = KVCache.empty(
            model.config, B, capacity, request.cache_dtype, apart=apart, sharding=model.sharding
        )
    cache = cache.stacked() if model.form == "stacked" else cache.apart()
    logprobs = np.zeros((B, M), at_least_float32(model.dtype))
    seen = np.zeros((B, model.config.vocab_size), np.bool_) if sampling.penalises else None
    # From NumPy: what `jnp.zeros` returns is compiled, for each shape.
    return _State(
        cache=cache.settle().on_mesh(model.sharding),
        step=_put(model, np.int32(0)),
        last=_put(model, np.zeros(B, np.int32)),
        done=_put(model, np.zeros(B, np.bool_)),
        tokens=_put(model, np.full((B, M), -1, np.int32)),
        logprobs=_put(model, logprobs),
        lengths=_put(model, np.zeros(B, np.int32)),
        seen=_put(model, seen),
    )


def _put(model: Llama, values: Any) -> Any:
    """Return values on the model's devices, laid out as a state comes back from its program: else
    that would be compiled once more for the second call.
    """
    return jax.device_put(values, None if model.sharding is None else model.sharding.of((), ()))


def _inputs(request: Request, sampling: Sampling, *, fresh: bool = False) -> _Inputs:
    prompt = np.zeros((len(request.prompts), bucket(request.longest)), np.int32)
    for row, ids in enumerate(request.prompts):
        prompt[row, : len(ids)] = ids
    eos = np.full(bucket(len(request.eos_ids), least=8), -1, np.int32)
    eos[: len(request.eos_ids)] = request.eos_ids
    return _Inputs(
        prompt=jax.device_put(prompt),
        prompt_lengths=jax.device_put(np.array([len(ids) for ids in request.prompts], np.int32)),
        keys=_keys(np.array(request.seeds, np.uint32)),
        sampling=sampling.values(),
        eos=jax.device_put(eos),
        fresh=fresh,
    )


_keys = jax.jit(jax.vmap(jax.random.key))


@partial(jax.jit, static_argnames=("graph",), donate_argnames=("state",))
def _advance(
    graph: nnx.GraphDef[Llama],
    weights: nnx.State[Any, Any],
    state: _State,
    inputs: _Inputs,
    until: Int[Array, ""],
) -> _State:
    """Prefill if that has not happened yet, then decode until `until` tokens or all rows done."""

    def bound(s: _State) -> tuple[_State, Llama]:
        # To the state: what products want of the weights in another order or dtype would be taken
        # out of the loop and be made at every call, though a prompt is read in the first alone and
        # a head of 16 bits, widened, takes as long as two tokens.
        s, held = jax.lax.optimization_barrier((s, weights))
        return s, nnx.merge(graph, held)

    def prefill(s: _State) -> _State:
        s, model = bound(s)
        T = inputs.prompt.shape[1]
        valid = jnp.arange(T, dtype=jnp.int32)[None, :] < inputs.prompt_lengths[:, None]
        seen = None if s.seen is None else _mark(s.seen, inputs.prompt, valid)
        known = {"fresh": inputs.prompt_lengths} if inputs.fresh else {}
        logits, cache = feed(model, s.cache, inputs.prompt, valid, **known)
        return _write(dataclasses.replace(s, cache=cache, seen=seen), logits, inputs)

    def decode(s: _State) -> _State:
        s, model = bound(s)
        logits, cache = feed(model, s.cache, s.last[:, None], ~s.done[:, None])
        return _write(dataclasses.replace(s, cache=cache), logits, inputs)

    # A loop that runs at most once, where a `cond` would copy the whole cache when it does not.
    state = jax.lax.while_loop(lambda s: s.step == 0, prefill, state)
    state = jax.lax.while_loop(lambda s: (s.step < until) & ~s.done.all(), decode, state)
    sharding = nnx.merge(graph, weights).sharding
    return state if sharding is None else _on_mesh(state, sharding)


def _on_mesh(state: _State, sharding: ModelSharding) -> _State:
    """Return a state laid out on a mesh, what has been written whole: every host looks at it."""
    fields = {one.name: getattr(state, one.name) for one in dataclasses.fields(state)}
    cache = fields.pop("cache").on_mesh(sharding)
    return _State(cache=cache, **jax.tree.map(lambda held: sharding.keep(held, ()), fields))


def feed(
    model: Llama,
    cache: KVCache,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    fresh: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B V"], KVCache]:
    """Run valid tokens (none after an invalid one), each row's at its next places in the cache.

    Args:
        model: the model.
        cache: what came before.
        tokens: the new ones.
        valid: which of them are real.
        fresh: how many are real in each row, where the cache is known to be empty.

    Returns:
        Logits after each row's last valid token, and the filled cache.
    """
    B, T = tokens.shape
    rows, end = jnp.arange(B, dtype=jnp.int32), jnp.maximum(cache.lengths - 1, 0)
    first = jnp.where(cache.lengths > 0, cache.positions[rows, end] + 1, 0)
    positions = first[:, None] + jnp.arange(T, dtype=jnp.int32)[None, :]
    segments = jnp.broadcast_to(cache.segments[rows, end][:, None], (B, T))
    cache = cache.extend(positions, valid, segments)
    queries, keys = Tokens(positions, valid, segments), cache.tokens()
    if fresh is not None:
        queries, keys = (Tokens.contiguous(fresh, size) for size in (T, cache.capacity))
    mask = (causal() & padding()).bind(queries, keys)
    x, filled = model.hidden(tokens, positions=positions, mask=mask, cache=cache)
    assert filled is not None
    last = jnp.maximum(valid.sum(axis=1, dtype=jnp.int32) - 1, 0)
    return model.head(x[rows, last][:, None, :])[:, 0, :], filled


def _write(s: _State, logits: Float[Array, "B V"], inputs: _Inputs) -> _State:
    """Choose the next token of every unfinished row and take note of it."""
    live = ~s.done
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(inputs.keys, s.step)
    token = choose(logits, keys, inputs.sampling, s.seen)
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    logprob = jnp.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0]
    return dataclasses.replace(
        s,
        step=s.step + 1,
        last=token,
        done=s.done | (token[:, None] == inputs.eos[None, :]).any(axis=-1),
        tokens=s.tokens.at[:, s.step].set(jnp.where(live, token, -1)),
        logprobs=s.logprobs.at[:, s.step].set(jnp.where(live, logprob, 0)),
        lengths=s.lengths + live.astype(jnp.int32),
        seen=None if s.seen is None else _mark(s.seen, token[:, None], live[:, None]),
    )


def _mark(
    seen: Bool[Array, "B V"], tokens: Int[Array, "B T"], valid: Bool[Array, "B T"]
) -> Bool[Array, "B V"]:
    rows = jnp.arange(len(tokens), dtype=jnp.int32)[:, None]
    return seen.at[rows, jnp.where(valid, tokens, seen.shape[1])].set(True, mode="drop")


def _finish(
    model: Llama,
    state: _State,
    request: Request,
    held: Int[np.ndarray, " B"],
    cuts: Mapping[int, int],
) -> Generation:
    tokens, logprobs = np.array(state.tokens), np.array(state.logprobs)
    lengths = np.array(state.lengths)
    for row, length in cuts.items():
        lengths[row] = min(length, lengths[row])
    width = int(lengths.max())
    past_end = np.arange(width)[None, :] >= lengths[:, None]
    tokens = np.where(past_end, np.int32(-1), tokens[:, :width])
    logprobs = np.where(past_end, 0, logprobs[:, :width])
    if not np.isfinite(logprobs).all():
        row, token = (int(i) for i in np.argwhere(~np.isfinite(logprobs))[0])
        # After what a cache held, the tokens before are not known.
        ids = [] if held[row] else [*request.prompts[row].tolist(), *tokens[row, :token].tolist()]
        raise not_finite(model, row, token, ids)
    reasons: list[FinishReason] = []
    for row, length in enumerate(lengths):
        ended = length > 0 and tokens[row, length - 1] in request.eos_ids
        reasons.append("stop" if row in cuts else "eos" if ended else "length")
    cache = state.cache
    if cuts:  # forget what was read past a cut
        prompt_lengths = np.array([len(ids) for ids in request.prompts])
        kept = np.minimum(held + prompt_lengths + np.maximum(lengths - 1, 0), cache.lengths)
        cache = dataclasses.replace(cache, lengths=jax.device_put(kept.astype(np.int32)))
    return Generation(tokens, lengths, logprobs, tuple(reasons), tuple(request.seeds), cache)


def _rows(tokens: Int[np.ndarray, "B M"], lengths: Int[np.ndarray, " B"]) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
