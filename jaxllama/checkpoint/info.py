"""Say what a checkpoint is: format, family, sizes, and what is missing or odd."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.checks import head_problems, structure_problems
from jaxllama.checkpoint.names import HEAD
from jaxllama.config import LlamaConfig
from jaxllama.errors import JaxLlamaError
from jaxllama.presets import PRESETS

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
        odd=(*notes, *differences, *odd),
        problems=(*structure_problems(checkpoint), *heads, *unreadable),
    )


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
