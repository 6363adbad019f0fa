"""What `generate`, its requests and its sampler do, side by side.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from jaxllama.checkpoint import Checkpoint
from jaxllama.generate import Generation, generate
from jaxllama.model import Llama
from jaxllama.sampling import Sampling
from parity.generation.compare import (
    CACHE,
    DRAWS,
    KEPT,
    LOGPROBS,
    MODE,
    ROWS,
    SETTINGS,
    TOKENS,
    with_ties,
)
from parity.generation.exchanges import PROMPT, Conversation, Exchange, prompt_rows
from parity.result import Result
from parity.runner.run import run
from parity.scenarios import scenario
from parity.selftest.mutants import oracles
from parity.selftest.mutants.forms import Form, Outputs, said_by
from parity.subjects.jaxllama.generate import Generator, draw, kept_logits

DTYPES = {"f64": np.float64, "f32": np.float32}
# Random logits that the samplers are held to each other on: with those made equal as many rows as
# the run has, for which all is compiled.
LOGITS = 15
# Prompts of which the run has none. The first are of its shapes; of the others there are more, and
# one is longer than its bucket.
FRESH = (tuple(range(40, 54)), (7,), (200, 3, 99))
WIDE = (tuple(range(40, 61)), (7,), (200, 3, 99), tuple(range(5, 19)))
FRESH_NEW = 7
OTHER_SETTINGS: tuple[Mapping[str, Any], ...] = (
    {},
    {"repetition_penalty": 0.7},
    {"temperature": 1.7, "top_k": 1},
    {"temperature": 0.3, "top_k": 1000, "min_p": 0.3},
    {"temperature": 1, "top_p": 0.05},
    {"temperature": 2.5, "top_k": 7, "top_p": 0.6, "repetition_penalty": 1.9},
)


def writing_forms() -> tuple[Form, ...]:
    """Return the run's own model and prompts in float64, in float32, and what no run asks."""
    return (
        Form("float64", partial(_conversation, "f64"), partial(_run, "f64"), usual=True),
        Form("float32", partial(_conversation, "f32"), partial(_run, "f32")),
        Form("other prompts and settings", _elsewhere, None),
    )


@cache
def _checkpoint() -> Checkpoint:
    return oracles.micro()


def _run(lane: str) -> Result:
    return run(_checkpoint(), dtypes=lane, modes=MODE)


def _model(lane: str) -> Llama:
    return oracles.subject_of(_checkpoint(), lane).model


def _conversation(lane: str) -> Outputs:
    """Return what is written for the run's own prompts, by row and scenario of its report."""
    checkpoint = _checkpoint()
    found: dict[str, Any] = {}
    inputs = scenario(
        "right_padded", checkpoint.tokenizer().encode, checkpoint.config, length=PROMPT
    )
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for one in Conversation(Generator(_model(lane)), prompt_rows(inputs)).hold():
            found |= dict(_written(one))
        for name, setting in SETTINGS.items():
            values = {n: v for n, v in vars(setting).items() if v is not None}
            found |= _sampled(name, values, DTYPES[lane])
    return found


def _written(one: Exchange) -> Iterator[tuple[str, Any]]:
    w = one.written
    if w is None:
        yield f"{ROWS} {one.name}", "refused"
        return
    rows = (w.lengths.tolist(), w.finish_reasons, w.seeds, (w.tokens < 0).tolist())
    yield f"{ROWS} {one.name}", rows
    yield f"{TOKENS} {one.name}", w.tokens
    yield f"{LOGPROBS} {one.name}", w.logprobs
    positions = [row[:held].tolist() for row, held in zip(w.positions, w.held, strict=True)]
    yield f"{CACHE} {one.name}", (w.held.tolist(), positions)


def _sampled(name: str, values: Mapping[str, Any], dtype: type) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    logits: np.ndarray = with_ties(3 * rng.standard_normal((LOGITS, 264))).astype(dtype)
    seen = rng.random(logits.shape) < 0.1
    keys = jax.vmap(jax.random.key)(np.arange(len(logits), dtype=np.uint32))
    return {
        f"{KEPT} {name}": said_by(lambda: kept_logits(logits, values, seen)),
        f"{DRAWS} {name}": said_by(lambda: draw(logits, values, seen, keys)),
    }


def _elsewhere() -> Outputs:
    """Return what is written where the run does not look."""
    found: dict[str, Any] = {}
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for number, values in enumerate(OTHER_SETTINGS):
            sampled = _sampled(str(number), values, np.float64)
            found |= {f"other {name}": value for name, value in sampled.items()}
        write = partial(generate, _model("f64"), max_new_tokens=FRESH_NEW)
        first = write(FRESH)
        found |= _generation("greedy", first)
        more = [(row[-1], 1, 2)[: 3 - b] for b, row in enumerate(first.rows())]
        found |= _generation("continued", write(more, cache=first.cache))
        ends = [row[2 * b] for b, row in enumerate(first.rows())]
        found |= _generation("ended", write(FRESH, eos_ids=ends))
        found |= _generation("watched", write(FRESH, every=2, watch=_cut))
        array = np.array(FRESH[0][:12]).reshape(3, 4)
        hot = Sampling(temperature=1.4, top_k=50, top_p=0.95, min_p=0.01, repetition_penalty=1.1)
        sample = partial(write, array, sampling=hot, eos_ids=())
        found |= _generation("hot", sample(seed=3))
        found |= _generation("seeds", sample(seed=[5, 5, 2**32 - 1]))
        found |= _generation("wide", write(WIDE, eos_ids=()))
    return found


def _cut(rows: Sequence[Sequence[int]]) -> dict[int, int]:
    return {b: 3 for b in (1, 2) if len(rows[b]) >= 3}


def _generation(name: str, found: Generation) -> dict[str, Any]:
    """Return the public results of a call, the cache's as far as tokens are in it."""
    lengths = np.asarray(found.cache.lengths)
    held = np.arange(found.cache.capacity)[None, :] < lengths[:, None]
    shown = {
        "rows": (found.lengths.tolist(), found.finish_reasons, found.seeds, found.tokens.tolist()),
        "logprobs": found.logprobs,
        "held": lengths,
        "positions": np.where(held, np.asarray(found.cache.positions), 0),
        "k": np.where(held[None, :, :, None, None], np.asarray(found.cache.stacked().k), 0),
        "v": np.where(held[None, :, :, None, None], np.asarray(found.cache.stacked().v), 0),
    }
    return {f"{name} {what}": value for what, value in shown.items()}
