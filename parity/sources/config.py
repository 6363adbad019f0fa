"""A model's numbers as parity reads them, each with the place it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from jaxllama.config import LlamaConfig, RopeScaling


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How rotary frequencies are stretched: all by `factor`, or llama3's slow ones alone."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


def token_or_none(value: Any) -> Any:
    """Return a stored token id; None for what stands for none.

    That is below zero as a signed integer of any width, a word, or an empty list.
    """
    absent = isinstance(value, str | list) or (value is not None and not 0 <= value < 1 << 31)
    return None if absent else value


def end_tokens(value: Any) -> tuple[Any, ...]:
    """Return the ids of a field that holds one, several or none."""
    listed = value if isinstance(value, list) else [value]
    return tuple(token for token in map(token_or_none, listed) if token is not None)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What a checkpoint says of its model, under Hugging Face's names.

    Attributes:
        where: file and key that each field was read from; of the fields of `rope_scaling` under
            `rope_scaling`.
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
    rope_scaling: Scaling | None
    tie_word_embeddings: bool
    max_position_embeddings: int | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    where: Mapping[str, str] = field(compare=False, repr=False)

    def to_llama(self) -> LlamaConfig:
        """Return the configuration that models are built of, from these values alone."""
        scaling = self.rope_scaling
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            rms_norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
            rope_scaling=None if scaling is None else RopeScaling(**asdict(scaling)),
            tie_word_embeddings=self.tie_word_embeddings,
            max_position_embeddings=self.max_position_embeddings,
            bos_token_id=self.bos_token_id,
            eos_token_ids=self.eos_token_ids,
            pad_token_id=self.pad_token_id,
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the same for transformers, whose spelling is of its version 5."""
        plain = {name: value for name, value in asdict(self).items() if name in _HF_FIELDS}
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_scaling is not None:
            stated = {k: v for k, v in asdict(self.rope_scaling).items() if v is not None}
            rope |= {"rope_type": stated.pop("kind"), **stated}
        if self.max_position_embeddings is not None:  # which transformers takes no null for
            plain["max_position_embeddings"] = self.max_position_embeddings
        eos = list(self.eos_token_ids) or None
        return {**plain, "rope_parameters": rope, "eos_token_id": eos, "hidden_act": "silu"}


_HF_FIELDS = {f.name for f in fields(SourceConfig)} - {
    "rope_theta",
    "rope_scaling",
    "eos_token_ids",
    "max_position_embeddings",
    "where",
}
