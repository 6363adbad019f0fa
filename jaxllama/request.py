"""What is asked of `generate`, checked as a whole before anything runs on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Int
from numpy.typing import DTypeLike

from jaxllama.cache import KVCache
from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError, argument, join_problems
from jaxllama.model import Llama
from jaxllama.quantisation import checked_cache_dtype

LEAST_BUCKET = 16
_CACHE_DTYPE = argument("cache_dtype")


@dataclass(frozen=True)
class Request:
    """A request that fits its model and cache.

    Attributes:
        prompts: token ids of each row.
        max_new_tokens: most tokens to write per row.
        eos_ids: tokens that end a row.
        seeds: one per row, each in [0, 2**32).
        cache_dtype: of the cache's keys and values.
    """

    prompts: list[Int[np.ndarray, " _"]]
    max_new_tokens: int
    eos_ids: tuple[int, ...]
    seeds: list[int]
    cache_dtype: np.dtype[Any]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(ids) for ids in self.prompts)


def bucket(size: int, least: int = LEAST_BUCKET) -> int:
    """Return the shape that `size` is padded to: the next power of two, and no less than `least`.

    >>> [bucket(n) for n in (1, 16, 17, 33)]
    [16, 16, 32, 64]
    """
    return max(least, 1 << max(0, size - 1).bit_length())


def check_request(
    model: Llama,
    prompts: Any,
    *,
    max_new_tokens: Any,
    eos_ids: Any,
    seed: Any,
    cache: KVCache | None,
    cache_dtype: DTypeLike | None,
    every: Any,
) -> Request:
    """Return the request in plain types, or say everything that is wrong with it.

    Raises:
        InputError: see `jaxllama.generate.generate`.
    """
    V = model.config.vocab_size
    rows, problems = _prompts(prompts, V)
    for name, value in (("max_new_tokens", max_new_tokens), ("every", every)):
        if not _whole(value) or value < 1:
            problems.append(f"{argument(name, value)}: expected an integer of at least 1")
    ids = model.config.eos_token_ids if eos_ids is None else eos_ids
    unknown = [i for i in ids if not _whole(i) or not 0 <= i < V]
    if unknown:
        problems.append(
            f"eos_ids {unknown}: no such tokens, the vocabulary has ids 0 to {V - 1}; give ids of "
            "this model's tokenizer, or () to write until max_new_tokens"
        )
    seeds, seed_problems = seeds_of(seed, len(rows))
    problems += seed_problems
    dtype = model.dtype
    try:
        dtype = checked_cache_dtype(
            model.dtype if cache_dtype is None else cache_dtype, _CACHE_DTYPE
        )
    except InputError as error:
        problems.append(error.marked)
    else:
        if cache is not None:
            problems += _cache_problems(cache, model, dtype)
    if not problems:
        problems += _room(model, rows, max_new_tokens, cache)
    if problems:
        raise InputError(join_problems("generate", problems))
    return Request(rows, int(max_new_tokens), tuple(int(i) for i in ids), seeds, dtype)


def _prompts(prompts: Any, vocabulary: int) -> tuple[list[np.ndarray], list[str]]:
    """Return every row as it was given, and what is wrong with any."""
    if isinstance(prompts, str) or len(prompts) and isinstance(prompts[0], str):
        text = "prompts: text, expected token ids; use generate_text, or encode with a tokenizer"
        return [], [text]
    if len(prompts) and np.ndim(prompts[0]) == 0:
        return [], ["prompts: one sequence of ids, expected one per row; write [ids]"]
    if not len(prompts):
        return [], ["prompts: none given, expected at least one"]
    rows, problems = [], []
    # A row of JAX's array would be traced inside `jit`, even of one that is closed over.
    for row, given in enumerate(np.asarray(prompts) if isinstance(prompts, jax.Array) else prompts):
        ids = np.asarray(given)
        if ids.size == 0:
            problems.append(
                f"prompt {row} is empty, expected at least one token; give the bos token alone to "
                "begin from nothing"
            )
        elif ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            problems.append(
                f"prompt {row}: {ids.dtype} {ids.shape}, expected integer token ids (T,)"
            )
        elif bad := [int(i) for i in ids if not 0 <= i < vocabulary]:
            problems.append(
                f"prompt {row}: token ids {bad[:5]} outside the vocabulary of {vocabulary} "
                f"(0 to {vocabulary - 1}); was it encoded by another model's tokenizer, or padded?"
            )
        rows.append(ids)
    return rows, problems


def seeds_of(seed: Any, rows: int) -> tuple[list[int], list[str]]:
    """Return a seed for each row, and what is to be said of them."""
    if _whole(seed) and 0 <= seed < 2**32:
        # Not seed + row: seeds 0 and 1 would then share all their rows but one.
        others = (np.random.SeedSequence((int(seed), row)) for row in range(1, rows))
        return [int(seed), *(int(other.generate_state(1)[0]) for other in others)][:rows], []
    seeds = [seed] * rows if _whole(seed) else seed
    if not isinstance(seeds, Sequence | np.ndarray) or isinstance(seeds, str):
        return [], [f"{argument('seed')} {seed!r}: expected an integer, or one per row"]
    if len(seeds) != rows:
        return [], [f"seed: {len(seeds)} seeds for {rows} prompts, expected one for each"]
    bad = [s for s in seeds if not _whole(s) or not 0 <= s < 2**32]
    if bad:
        return [], [f"{argument('seed')} {bad[0]!r}: expected integers from 0 to 2**32 - 1"]
    return [int(s) for s in seeds], []


def _cache_problems(cache: KVCache, model: Llama, expected: np.dtype[Any]) -> list[str]:
    if jax.tree.leaves(cache.k)[0].is_deleted():
        return [
            "cache: an earlier generate has consumed it; go on with that result's `cache`, or "
            "make another by KVCache.empty"
        ]
    problems = []
    if cache.slots.shape[1]:
        problems.append(
            f"cache: a call with {cache.slots.shape[1]} tokens a row is still pending; run the "
            "model on it first, or rewind it"
        )
    made_for = cache.made_for
    config = model.config
    wanted = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
    if made_for != wanted:
        problems.append(
            f"cache: (layers, kv heads, head dim) {made_for}, the model's are {wanted}; make it "
            "by KVCache.empty(model.config, ...)"
        )
    stored = [jax.tree.leaves(held)[0].dtype for held in (cache.k, cache.v)]
    if set(stored) != {expected}:
        problems.append(
            f"cache: keys in {stored[0]} and values in {stored[1]}, expected {expected}; "
            f"make it by KVCache.empty(..., {expected}), or give its dtype as cache_dtype to round "
            "on purpose"
        )
    return problems


def _room(
    model: Llama, rows: list[Int[np.ndarray, " _"]], new_tokens: int, cache: KVCache | None
) -> list[str]:
    """Return what does not fit the cache, or the context that the configuration states."""
    prompt_lengths, held = [len(ids) for ids in rows], [0] * len(rows)
    if cache is not None:
        if len(cache.lengths) != len(rows):
            return [f"cache: {len(cache.lengths)} rows, expected {len(rows)}, one for each prompt"]
        held = np.asarray(cache.lengths).tolist()
    # In Python's integers, which hold whatever is asked for.
    needed = [sum(counts) + int(new_tokens) for counts in zip(held, prompt_lengths, strict=True)]
    row = needed.index(max(needed))
    if cache is not None and needed[row] > cache.capacity:
        asked = prompt_lengths[row], int(new_tokens)
        return capacity_problems(cache.capacity, *asked, held=held[row], row=row)
    return context_problems(
        model.config, prompt_lengths[row], int(new_tokens), held=held[row], what=f"row {row}: "
    )


def capacity_problems(
    capacity: int, prompt: int, new_tokens: int, *, held: int = 0, row: int = 0
) -> list[str]:
    """Say that a row does not fit a cache; nothing where it does.

    Args:
        capacity: slots of the cache.
        prompt: tokens of the prompt.
        new_tokens: most that are to be written.
        held: tokens that the cache holds already.
        row: which it is.
    """
    needed = held + prompt + new_tokens
    if needed <= capacity:
        return []
    room = new_tokens - needed + capacity
    lower = f"give {argument('max_new_tokens', room)}, or " if room > 0 else "or "
    return [
        f"cache too small: row {row} needs {_in_words(held, prompt, new_tokens)} = {needed} slots, "
        f"the cache has {capacity}; make it with {argument('capacity', needed)} or more, {lower}"
        "shorten the prompt"
    ]


def context_problems(
    config: LlamaConfig, prompt: int, new_tokens: int, *, held: int = 0, what: str = ""
) -> list[str]:
    """Say that a text does not fit the context; nothing where it does.

    Args:
        config: the model's.
        prompt: tokens of the prompt.
        new_tokens: most that are to be written.
        held: tokens in the cache before the prompt.
        what: stands before it all.
    """
    needed = held + prompt + new_tokens
    room = config.within_context(needed) - held - prompt
    lower = f"give {argument('max_new_tokens', room)}, or " if room > 0 else ""
    return config.context_problems(
        needed, f"{what}{_in_words(held, prompt, new_tokens)}", f"{lower}shorten the prompt"
    )


def _in_words(held: int, prompt: int, new_tokens: int) -> str:
    said = f"{prompt} prompt tokens + {new_tokens} new ones"
    return f"{held} tokens held + {said}" if held else said


def _whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
