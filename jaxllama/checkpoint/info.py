"""Say what a checkpoint is: format, family, sizes, and what is missing or odd."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.checks import head_problems, structure_problems
from jaxllama.checkpoint.dtypes import BFLOAT16
from jaxllama.checkpoint.names import HEAD
from jaxllama.config import LlamaConfig
from jaxllama.errors import JaxLlamaError
from jaxllama.presets import PRESETS
from jaxllama.quantisation import cache_bytes, step_bytes

# What makes two models of one family: everything but vocabulary, special tokens and context.
_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
# Tokenizers in forms that transformers reads, and makes tokenizer.json of.
_TOKENIZERS = ("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class DecodingSizes:
    """What decoding one row has to hold and to read, in bytes.

    Attributes:
        attention: MHA, GQA or MQA, and its heads.
        dtype: of weights and cache.
        context: tokens of the whole context; None where the configuration does not say.
        cache_token: keys and values of a token; `cache_context` of the whole context.
        step: weights that are read for a token; `step_context` with a full cache besides.
    """

    attention: str
    dtype: str
    context: int | None
    cache_token: int
    cache_context: int | None
    step: int
    step_context: int | None

    def rows(self, bandwidth: float | None) -> dict[str, str]:
        """Return it in words; with a bandwidth in GB/s tokens a second, too."""
        cache = f"{self.cache_token:,} bytes a token"
        floor = f"{self.step:,} bytes a token"
        if self.cache_context is not None and self.step_context is not None:
            cache += f", {self.cache_context:,} of {self.context:,}"
            floor += f", {self.step_context:,} after {self.context:,}"
        said = {"attention": self.attention, f"cache ({self.dtype})": cache, "decode floor": floor}
        if bandwidth is not None:
            rate = f"{bandwidth * 1e9 / self.step:.1f} tokens a second"
            if self.step_context is not None:
                rate += f", {bandwidth * 1e9 / self.step_context:.1f} after {self.context:,}"
            said[f"at {bandwidth:g} GB/s"] = rate
        return said


@dataclass(frozen=True)
class Info:
    """What a checkpoint is.

    Attributes:
        path: where it is.
        format: `hf`, `meta`, `orbax`, `gguf` or `memory`.
        family: published models of the same shape.
        parameters: number of weights, a tied head counted once.
        nbytes: of the weights once read.
        dtypes: weights by dtype, or by encoding where they are quantised.
        config: its numbers.
        tokenizer: kind and size, or why there is none.
        decoding: what decoding has to hold and to read.
        odd: what is unusual and does no harm.
        problems: what stops it from being loaded; of values, those of a head stored though tied
            alone are looked at.
    """

    path: str
    format: str
    family: str
    parameters: int
    nbytes: int
    dtypes: dict[str, int]
    config: dict[str, Any]
    tokenizer: str
    decoding: DecodingSizes
    odd: tuple[str, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dict for JSON."""
        return dataclasses.asdict(self)


def describe(checkpoint: Checkpoint) -> Info:
    """Look at a checkpoint's metadata; no weight is read, but for a head that must be a copy."""
    dtypes: Counter[str] = Counter()
    for info in checkpoint.tensors.values():
        stored = info.encoding if info.encoding not in ("", "F32", "F16", "BF16") else ""
        dtypes[stored or info.dtype.name] += math.prod(info.shape)
    tokenizer, odd, unreadable = _tokenizer(checkpoint)
    heads = head_problems(checkpoint)
    # What stops it from being loaded is no oddity.
    notes = [n for n in checkpoint.notes if not (heads and n.startswith(HEAD))]
    family, differences = _family(checkpoint.config)
    return Info(
        path=checkpoint.label,
        format=checkpoint.format,
        family=family,
        parameters=sum(dtypes.values()),
        nbytes=checkpoint.nbytes,
        dtypes=dict(dtypes),
        config=dataclasses.asdict(checkpoint.config),
        tokenizer=tokenizer,
        decoding=decoding_sizes(checkpoint.config, _main_dtype(checkpoint)),
        odd=(*notes, *differences, *odd),
        problems=(*structure_problems(checkpoint), *heads, *unreadable),
    )


def decoding_sizes(config: LlamaConfig, dtype: np.dtype) -> DecodingSizes:
    """Return what decoding one row has to hold and to read, weights and cache in one dtype."""
    N, K, context = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.max_position_embeddings,
    )
    kind = "MHA" if K == N else "MQA" if K == 1 else "GQA"
    full = None if context is None else cache_bytes(config, 1, context, dtype)
    step = step_bytes(config, dtype)
    return DecodingSizes(
        attention=f"{kind}, {K} key head{'s' * (K != 1)} for {N} query heads",
        dtype=dtype.name,
        context=context,
        cache_token=cache_bytes(config, 1, 1, dtype),
        cache_context=full,
        step=step,
        step_context=None if full is None else step + full,
    )


def _main_dtype(checkpoint: Checkpoint) -> np.dtype:
    """Return the dtype of most weights; bfloat16 where there are none."""
    sizes: Counter[np.dtype] = Counter()
    for info in checkpoint.tensors.values():
        sizes[info.dtype] += info.nbytes
    return sizes.most_common(1)[0][0] if sizes else BFLOAT16


def _family(config: LlamaConfig) -> tuple[str, list[str]]:
    """Return the published models of a shape, and how this one differs from the nearest."""
    same = {
        name: preset
        for name, preset in PRESETS.items()
        if all(getattr(preset, field) == getattr(config, field) for field in _SHAPE)
    }
    if not same:
        return "none of the published Llama 3 models", []
    fields = ("vocab_size", "rope_theta", "rope_scaling", "rms_norm_eps", "tie_word_embeddings")

    def differing(preset: LlamaConfig) -> list[str]:
        return [f for f in fields if getattr(preset, f) != getattr(config, f)]

    fewest = min(len(differing(preset)) for preset in same.values())
    nearest = [name for name, preset in same.items() if len(differing(preset)) == fewest]
    changed = [
        f"{field} is {getattr(config, field)!r}, {nearest[0]} was published with "
        f"{getattr(same[nearest[0]], field)!r}"
        for field in differing(same[nearest[0]])
    ]
    return ", ".join(nearest), changed


def _other_tokenizer(checkpoint: Checkpoint) -> str:
    """Say that there is no tokenizer, or what there is of one in a form that is not read."""
    place = checkpoint.path
    there = [n for n in _TOKENIZERS if place is not None and (place / n).is_file()]
    if not there:
        return "no tokenizer beside the weights"
    return (
        f"no tokenizer that is read here, but {', '.join(there)}: "
        "`AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)` of transformers "
        "writes tokenizer.json"
    )


def _tokenizer(checkpoint: Checkpoint) -> tuple[str, list[str], list[str]]:
    """Return a line on the tokenizer, what is odd about it, and why it cannot be read."""
    if checkpoint.tokenizer_loader is None:
        return "none", [_other_tokenizer(checkpoint)], []
    try:
        tokenizer = checkpoint.tokenizer()
    except JaxLlamaError as error:
        return "cannot be read", [], [f"tokenizer: {error}"]
    rows, odd = checkpoint.config.vocab_size, [*tokenizer.notes]
    if tokenizer.vocab_size > rows:
        beyond = [text for text, i in tokenizer.special_tokens.items() if i >= rows]
        named = f", without one: {', '.join(beyond[:4])}" if beyond else ""
        odd.append(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding {rows} rows{named}; "
            "resize the embedding before such a token is used"
        )
    elif tokenizer.vocab_size < rows:
        odd.append(f"{rows - tokenizer.vocab_size} rows of the embedding have no token")
    if tokenizer.bos_id is None:
        odd.append("no file names a token that begins a text")
    if not tokenizer.eos_ids:
        odd.append("no file names a token that ends a text: generation ends at its limit alone")
    template = "a chat template" if tokenizer.has_chat else "no chat template"
    return (
        f"{tokenizer.vocab_size} tokens, {template}",
        odd,
        [f"tokenizer: {problem}" for problem in tokenizer.problems],
    )
