"""The published numbers of the Llama 3 text models, for planning, testing and synthetic weights.

Source: the config.json of each model's official Hugging Face repository, cross-checked with the
architecture table in Meta's llama-models `sku_list.py`. Nothing dispatches on these names: a
checkpoint is always read with its own config.
"""

from __future__ import annotations

from types import MappingProxyType

from jaxllama.config import LlamaConfig, RopeScaling
from jaxllama.errors import ConfigError

_BASE_EOS = (128_001,)
# Instruction-tuned models also stop at <|eom_id|> and <|eot_id|>; 3.3 has no other form.
_INSTRUCT_EOS = (128_001, 128_008, 128_009)


def _llama3(factor: float) -> RopeScaling:
    return RopeScaling(
        kind="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )


def _published(
    shape: tuple[int, int, int, int, int, int],
    *,
    scaling: RopeScaling | None,
    tied: bool = False,
    eos: tuple[int, ...] = _BASE_EOS,
) -> LlamaConfig:
    """Return the config of a model from its (D, F, L, N, K, H); the rest is common to Llama 3."""
    hidden, intermediate, layers, heads, kv_heads, head_dim = shape
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=scaling,
        tie_word_embeddings=tied,
        max_position_embeddings=8192 if scaling is None else 131_072,
        bos_token_id=128_000,
        eos_token_ids=eos,
    )


_SHAPE_8B = (4096, 14_336, 32, 32, 8, 128)
_SHAPE_70B = (8192, 28_672, 80, 64, 8, 128)

PRESETS = MappingProxyType(
    {
        "llama-3-8b": _published(_SHAPE_8B, scaling=None),
        "llama-3-70b": _published(_SHAPE_70B, scaling=None),
        "llama-3.1-8b": _published(_SHAPE_8B, scaling=_llama3(8.0)),
        "llama-3.1-70b": _published(_SHAPE_70B, scaling=_llama3(8.0)),
        "llama-3.1-405b": _published((16_384, 53_248, 126, 128, 8, 128), scaling=_llama3(8.0)),
        "llama-3.2-1b": _published((2048, 8192, 16, 32, 8, 64), scaling=_llama3(32.0), tied=True),
        "llama-3.2-3b": _published((3072, 8192, 28, 24, 8, 128), scaling=_llama3(32.0), tied=True),
        "llama-3.3-70b": _published(_SHAPE_70B, scaling=_llama3(8.0), eos=_INSTRUCT_EOS),
    }
)


def preset(name: str) -> LlamaConfig:
    """Return the published config of a model.

    Args:
        name: one of `PRESETS`, such as "llama-3.1-8b"; case does not matter.

    Raises:
        ConfigError: no such preset; the message lists those there are.

    >>> preset("llama-3.2-1b").rope_scaling.factor
    32.0
    """
    try:
        return PRESETS[name.lower()]
    except KeyError:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(PRESETS)}") from None
