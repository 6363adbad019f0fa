"""The numbers that define a Llama model. None has a default: they come from the checkpoint.

Readers and writers of the published metadata formats live in `jaxllama.config_formats`, the
published models' own numbers in `jaxllama.presets`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import numpy as np

from jaxllama.command_line.notebook import html_table
from jaxllama.errors import ConfigError, join_problems

_LLAMA3_FIELDS = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_DIMENSIONS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)

# Token ids, positions and sizes are int32 on the device.
_LARGEST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context they were trained on.

    Args:
        kind: "linear" divides every frequency by `factor`; "llama3" divides the slow ones by it,
            keeps the fast ones, and blends in between.
        factor: the stretch, at least 1.
        low_freq_factor: llama3 alone; a frequency that turns fewer times than this within the
            original context is divided by `factor`.
        high_freq_factor: llama3 alone; one that turns more often than this is kept.
        original_max_position_embeddings: llama3 alone; the original context, in tokens.

    Raises:
        ConfigError: a field is missing, does not belong to `kind`, or contradicts another.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None

    def __post_init__(self) -> None:
        if problems := scaling_problems(vars(self)):
            raise ConfigError(join_problems("rope_scaling", problems))
        _as_float(self, "factor", "low_freq_factor", "high_freq_factor")

    # Without jaxtyping's shapes: what is saved is judged where there is NumPy alone.
    def frequency_factors(self, inv_freq: np.ndarray) -> np.ndarray:
        """Return what each unscaled frequency is divided by.

        Args:
            inv_freq: unscaled frequencies in radians a token, [H/2].

        Returns:
            Divisors [H/2] in the dtype of `inv_freq`; 1 where a frequency is kept.

        Source: `apply_scaling` in Meta's llama-models `llama3/model.py`. The same divisors are what
        a GGUF file stores as `rope_freqs.weight`.
        """
        if self.kind == "linear":
            return np.full_like(inv_freq, self.factor)
        low, high, context = self.low_freq_factor, self.high_freq_factor, self.original_context
        assert low is not None and high is not None
        turns = context * inv_freq / (2 * math.pi)
        # Clipping joins the three published cases: 0 below the band, 1 above it, a ramp inside.
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (1 / ((1 - keep) / self.factor + keep)).astype(inv_freq.dtype)

    @property
    def original_context(self) -> int:
        """The context in tokens that the model had before llama3 scaling."""
        assert self.original_max_position_embeddings is not None
        return self.original_max_position_embeddings


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Everything that decides the numerics of a Llama 3 text model, under Hugging Face's names.

    Args:
        vocab_size: V, rows of the embedding.
        hidden_size: D, width of the residual stream.
        intermediate_size: F, width inside the MLP.
        num_hidden_layers: L.
        num_attention_heads: N, query heads.
        num_key_value_heads: K, key and value heads; divides N.
        head_dim: H, width of one head; even, and not always D / N.
        rms_norm_eps: added to the mean square in every norm.
        rope_theta: base of the rotary frequencies.
        rope_scaling: how these are stretched; None leaves them as they are.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the context in tokens that the publisher states, if any. No number
            depends on it; rows that are longer are refused.
        bos_token_id: first token of a prompt, if the model has one.
        eos_token_ids: tokens that end a generation.
        pad_token_id: the tokenizer's padding token, if it has one. No mask is derived from it.

    Raises:
        ConfigError: every field that is out of range or contradicts another, in one message.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    max_position_embeddings: int | None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __str__(self) -> str:
        return "\n".join(f"{name}: {said}" for name, said in self._in_words())

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return html_table("LlamaConfig", self._in_words())

    def _in_words(self) -> list[tuple[str, str]]:
        """Return the numbers in few lines, those that belong together in one."""
        scaling = "as they are" if self.rope_scaling is None else str(self.rope_scaling)
        tied = "tied" if self.tie_word_embeddings else "of its own"
        return [
            ("layers", f"{self.num_hidden_layers} of width {self.hidden_size}"),
            (
                "heads",
                f"{self.num_attention_heads} for queries, {self.num_key_value_heads} for keys and "
                f"values, {self.head_dim} wide",
            ),
            ("mlp", f"{self.intermediate_size} wide"),
            ("vocabulary", f"{self.vocab_size}, the head's weight {tied}"),
            ("norms", f"eps {self.rms_norm_eps:g}"),
            ("rotary", f"theta {self.rope_theta:g}; frequencies {scaling}"),
            ("context", f"{self.max_position_embeddings or 'not stated'}"),
            ("bos, eos, pad", f"{self.bos_token_id}, {self.eos_token_ids}, {self.pad_token_id}"),
        ]

    def __post_init__(self) -> None:
        if problems := config_problems(vars(self)):
            raise ConfigError(join_problems("model config", problems))
        _as_float(self, "rms_norm_eps", "rope_theta")
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))

    def replace(self, **changes: Any) -> LlamaConfig:
        """Return a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def within_context(self, tokens: int) -> int:
        """Return a row's tokens, cut to the context: what is done where nobody said how many."""
        return min(tokens, self.max_position_embeddings or tokens)

    def context_problems(self, tokens: int, what: str, remedy: str) -> list[str]:
        """Say that a row does not fit the context; nothing where it fits, or none is stated.

        Args:
            tokens: of the row.
            what: has so many.
            remedy: what to give in place.
        """
        stated = self.max_position_embeddings
        if stated is None or tokens <= stated:
            return []
        return [
            f"{what}: {tokens} tokens, and the configuration states a context of {stated} "
            f"(max_position_embeddings); {remedy}, or raise that field if the model is meant to go "
            "further"
        ]

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        *,
        source: str = "config.json",
        notes: list[str] | None = None,
    ) -> LlamaConfig:
        """Read the dict of a Hugging Face config.json; see `jaxllama.config_formats.hf.read_hf`."""
        from jaxllama.config_formats.hf import read_hf

        return read_hf(config, source=source, notes=notes)

    @classmethod
    def from_meta(cls, params: Mapping[str, Any], **from_weights: Any) -> LlamaConfig:
        """Read the dict of Meta's params.json; see `jaxllama.config_formats.meta.read_meta`."""
        from jaxllama.config_formats.meta import read_meta

        return read_meta(params, **from_weights)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object], **from_weights: Any) -> LlamaConfig:
        """Read a GGUF file's metadata; see `jaxllama.config_formats.gguf.read_gguf`."""
        from jaxllama.config_formats.gguf import read_gguf

        return read_gguf(metadata, **from_weights)

    def to_hf(self) -> dict[str, Any]:
        """Return the dict of a Hugging Face config.json; `from_hf` reads back an equal config."""
        from jaxllama.config_formats.hf import write_hf

        return write_hf(self)

    def to_meta(self) -> dict[str, Any]:
        """Return the dict of a params.json; see `jaxllama.config_formats.meta.write_meta`."""
        from jaxllama.config_formats.meta import write_meta

        return write_meta(self)

    def to_gguf(self) -> dict[str, Any]:
        """Return GGUF metadata; see `jaxllama.config_formats.gguf.write_gguf`."""
        from jaxllama.config_formats.gguf import write_gguf

        return write_gguf(self)


def scaling_problems(fields: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the fields of a `RopeScaling`; empty when nothing is."""
    kind = fields.get("kind")
    if kind not in ("linear", "llama3"):
        return [f"kind {kind!r}, expected 'linear' or 'llama3'; no other scaling is implemented"]
    problems = _number_problem("factor", fields.get("factor"), at_least=1)
    if kind == "linear":
        return problems + [
            f"{name} {fields[name]!r} given, but linear scaling has a factor alone; remove it"
            for name in _LLAMA3_FIELDS
            if fields.get(name) is not None
        ]
    low: Any = fields.get("low_freq_factor")
    high: Any = fields.get("high_freq_factor")
    context = fields.get("original_max_position_embeddings")
    bad_factors = _number_problem("low_freq_factor", low) + _number_problem(
        "high_freq_factor", high
    )
    if not bad_factors and low >= high:
        bad_factors = [f"low_freq_factor {low} is not below high_freq_factor {high}"]
    return problems + bad_factors + _count_problem("original_max_position_embeddings", context)


def config_problems(fields: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the fields of a `LlamaConfig`; empty when nothing is.

    Args:
        fields: values by field name. A required field that is absent or None is a problem.
    """
    problems = [p for name in _DIMENSIONS for p in _count_problem(name, fields.get(name))]
    heads, kv_heads, head_dim = (fields.get(name) for name in _DIMENSIONS[-3:])
    if is_count(heads) and is_count(kv_heads) and heads % kv_heads:
        problems.append(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    if is_count(head_dim) and head_dim % 2:
        problems.append(f"head_dim {head_dim} is odd; rotary embedding pairs elements")
    problems += _number_problem("rms_norm_eps", fields.get("rms_norm_eps"))
    problems += _number_problem("rope_theta", fields.get("rope_theta"))
    scaling = fields.get("rope_scaling")
    if not (scaling is None or isinstance(scaling, RopeScaling)):
        problems.append(f"rope_scaling {scaling!r}, expected a RopeScaling or None")
    if not isinstance(fields.get("tie_word_embeddings"), bool):
        problems.append(_missing_or("tie_word_embeddings", fields, "true or false"))
    if fields.get("max_position_embeddings") is not None:
        context = fields["max_position_embeddings"]
        problems += _count_problem("max_position_embeddings", context)
    return problems + _token_problems(fields)


def _token_problems(fields: Mapping[str, Any]) -> list[str]:
    ids = [(name, fields.get(name)) for name in ("bos_token_id", "pad_token_id")]
    eos = fields.get("eos_token_ids", ())
    if not isinstance(eos, tuple | list):
        return [f"eos_token_ids {eos!r}, expected a tuple of token ids"]
    ids += [("eos_token_ids", token) for token in eos]
    vocab = fields.get("vocab_size")
    if not is_count(vocab):
        return []  # said already
    return [
        f"{name} {token!r}, expected a token id in 0..{vocab - 1}"
        + ("; check vocab_size" if _is_int(token) and token >= vocab else "")
        + _added_alone(name, token, vocab)
        for name, token in ids
        if not (token is None and name != "eos_token_ids" or _is_int(token) and 0 <= token < vocab)
    ]


def _added_alone(name: str, token: object, vocab: int) -> str:
    """Say which side is likelier wrong: pads are added to tokenizers, and embeddings forgotten."""
    if name == "pad_token_id" and _is_int(token) and vocab <= token < vocab + 64:
        return (
            "; likelier a token was added to the tokenizer and the embedding not resized: set "
            "pad_token_id to null, or resize the embedding and the head with it"
        )
    return ""


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a float or an integer of 32 bits, and no bool."""
    return isinstance(value, float) or _is_int(value) and abs(value) <= _LARGEST


def is_count(value: object) -> TypeGuard[int]:
    """Whether `value` can be a size: an integer above 0, of 32 bits."""
    return _is_int(value) and 1 <= value <= _LARGEST


def _missing_or(name: str, fields: Mapping[str, Any], expected: str) -> str:
    value = fields.get(name)
    if value is None:
        return f"{name} is missing; it has no default, state it"
    return f"{name} {value!r}, expected {expected}"


def _count_problem(name: str, value: object) -> list[str]:
    """A list of at most one problem: `value` is not an integer above 0, of 32 bits."""
    if is_count(value):
        return []
    return [_missing_or(name, {name: value}, f"an integer in 1..{_LARGEST}")]


def _number_problem(name: str, value: object, at_least: float = 0) -> list[str]:
    """A list of at most one problem: `value` is not finite, positive and at least `at_least`."""
    if is_number(value) and math.isfinite(value) and value > 0 and value >= at_least:
        return []
    expected = f"a finite number of at least {at_least}" if at_least else "a finite number above 0"
    return [_missing_or(name, {name: value}, expected)]


def _as_float(instance: object, *names: str) -> None:
    """Turn integers into floats in place, so that 500000 and 500000.0 make equal configs."""
    for name in names:
        if getattr(instance, name) is not None:
            object.__setattr__(instance, name, float(getattr(instance, name)))
