"""Hugging Face config.json, with `rope_scaling` (transformers 4) or `rope_parameters` (5)."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr  # of bounded length: a value may be a whole vocabulary
from typing import Any

from jaxllama.config import LlamaConfig, RopeScaling, config_problems, is_count, scaling_problems
from jaxllama.errors import ConfigError, join_problems

_SAME_NAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "tie_word_embeddings",
    "max_position_embeddings",
    "bos_token_id",
    "pad_token_id",
)
_READ = {*_SAME_NAME, "head_dim", "eos_token_id", "rope_theta", "rope_scaling", "rope_parameters"}

# Fields that mean another model unless they hold one of these values, with what that would be.
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "model_type": (("llama",), "another architecture"),
    "architectures": (
        (None, [], ["LlamaForCausalLM"], ["LlamaModel"]),
        "another architecture or another head",
    ),
    "hidden_act": (("silu",), "another activation"),
    "attention_bias": ((None, False), "biases in the attention projections"),
    "mlp_bias": ((None, False), "biases in the MLP projections"),
    "pretraining_tp": ((None, 0, 1), "a sliced order of summation"),
    "sliding_window": ((None,), "another attention mask"),
    "use_sliding_window": ((None, False), "another attention mask"),
    "quantization_config": ((None, {}), "quantised weights; dequantise the checkpoint first"),
    "compression_config": ((None, {}), "compressed weights; decompress the checkpoint first"),
    "partial_rotary_factor": ((None, 1), "rotation of a part of each head"),
    "rope_interleaved": ((None, False), "interleaved rotary pairs"),
    "is_decoder": ((None, False, True), "an encoder"),
    "is_encoder_decoder": ((None, False), "an encoder and a decoder"),
    "add_cross_attention": ((None, False), "cross-attention"),
    "cross_attention_hidden_size": ((None,), "cross-attention"),
    "tie_encoder_decoder": ((None, False), "an encoder and a decoder"),
    "pruned_heads": ((None, {}), "pruned heads"),
    "chunk_size_feed_forward": ((None, 0), "a chunked MLP"),
}
# Fields that no output of a forward pass depends on: bookkeeping, training, generation defaults.
# A conversion carries them along.
# fmt: off
HARMLESS = frozenset([
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
    "attention_dropout", "attn_implementation", "bad_words_ids", "begin_suppress_tokens",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping",
    "encoder_no_repeat_ngram_size", "experts_implementation", "exponential_decay_length_penalty",
    "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "hidden_dropout_prob",
    "id2label", "initializer_range", "is_llama_config", "label2id", "length_penalty",
    "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores",
    "prefix", "problem_type", "remove_invalid_values", "repetition_penalty", "resid_pdrop",
    "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tokenizer_class", "top_k", "top_p",
    "torch_dtype", "torchscript", "transformers.js_config", "transformers_version", "typical_p",
    "unsloth_fixed", "unsloth_version", "use_bfloat16", "use_cache",
])
# fmt: on
_SCALING_KEYS = {
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


def read_hf(config: Mapping[str, Any], *, source: str = "config.json") -> LlamaConfig:
    """Read the dict of a Hugging Face config.json.

    `head_dim` alone may be left out, as Hugging Face defines it to be hidden_size /
    num_attention_heads then. A field this reader does not know is refused, not skipped: it could
    change the numbers.

    Args:
        config: the parsed file.
        source: what to call it in an error, such as its path.

    Raises:
        ConfigError: every missing, unsupported, unknown or contradictory field, in one message.

    Source: `LlamaConfig` and `modeling_rope_utils.py` in Hugging Face transformers.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{source}: {type(config).__name__}, expected an object")
    problems: list[str] = []
    for name, (allowed, meaning) in _ONLY.items():
        required = name in ("model_type", "hidden_act")
        if required and config.get(name) is None:
            problems.append(f"{name} is missing, expected {allowed[0]!r}")
        elif name in config and not _is_one_of(config[name], allowed):
            problems.append(f"{name} {config[name]!r} means {meaning}, which is not supported")
    problems += [
        f"{name} {repr(value)} is not a known field and could change the numbers; "
        "remove it if it is certain not to"
        for name, value in config.items()
        if value is not None and name not in HARMLESS and name not in _READ and name not in _ONLY
    ]
    fields: dict[str, Any] = {name: config.get(name) for name in _SAME_NAME}
    fields["head_dim"] = _head_dim(config)
    eos = config.get("eos_token_id")
    fields["eos_token_ids"] = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    fields["rope_theta"], fields["rope_scaling"] = _rope(config, problems)
    problems += config_problems(fields)
    if problems:
        raise ConfigError(join_problems(source, problems))
    return LlamaConfig(**fields)


def write_hf(config: LlamaConfig) -> dict[str, Any]:
    """Return the dict of a Hugging Face config.json that `read_hf` reads back as an equal config.

    The scaling is written as `rope_theta` and `rope_scaling`, which transformers 4 and 5 both read.
    """
    eos = config.eos_token_ids
    fields = {name: getattr(config, name) for name in _SAME_NAME}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        **{name: value for name, value in fields.items() if name != "max_position_embeddings"},
        # transformers refuses null here.
        **_present(max_position_embeddings=config.max_position_embeddings),
        "head_dim": config.head_dim,
        "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else list(eos),
        "rope_theta": config.rope_theta,
        "rope_scaling": _write_scaling(config.rope_scaling),
    }


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether `value` is one of `allowed`, where True is not 1 and False is not 0."""
    return any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed)


def _head_dim(config: Mapping[str, Any]) -> Any:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if config.get("head_dim") is not None:
        return config["head_dim"]
    if is_count(hidden) and is_count(heads) and hidden % heads == 0:
        return hidden // heads
    return None


def _rope(config: Mapping[str, Any], problems: list[str]) -> tuple[Any, RopeScaling | None]:
    """Return theta and scaling, from whichever of the two spellings is there; both must agree."""
    found = []
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name)
        if rope is None or rope == {}:
            continue
        if not isinstance(rope, Mapping):
            problems.append(f"{name} {rope!r}, expected an object")
        else:
            found.append((name, rope, _read_scaling(name, rope, problems)))
    if len(found) == 2 and found[0][2] != found[1][2]:
        problems.append("rope_parameters and rope_scaling contradict each other; keep one of them")
    thetas = {"rope_theta": config.get("rope_theta")}
    thetas |= {f"{name}.rope_theta": rope.get("rope_theta") for name, rope, _ in found}
    given = {name: theta for name, theta in thetas.items() if theta is not None}
    first = next(iter(given.values()), None)
    if any(theta != first for theta in given.values()):
        said = ", ".join(f"{name} {theta!r}" for name, theta in given.items())
        problems.append(f"{said} contradict each other; keep one of them")
    return first, found[0][2] if found else None


def _read_scaling(name: str, rope: Mapping[str, Any], problems: list[str]) -> RopeScaling | None:
    kinds = [rope[key] for key in ("rope_type", "type") if rope.get(key) is not None]
    if not kinds:
        if set(rope) - {"rope_theta"} or name == "rope_scaling":
            problems.append(f"{name}.rope_type is missing; it has no default, state it")
        return None
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        problems.append(
            f"{name} has rope_type {kinds[0]!r} and type {kinds[1]!r}; keep one of them"
        )
        return None
    kind = kinds[0]
    if not isinstance(kind, str) or kind not in ("default", *_SCALING_KEYS):
        problems.append(
            f"{name}.rope_type {kind!r} is not supported; 'default', 'linear' and 'llama3' are"
        )
        return None
    rest = {
        key: value
        for key, value in rope.items()
        if key not in ("rope_type", "type", "rope_theta") and value is not None
    }
    if _is_one_of(rest.get("partial_rotary_factor"), (1,)):
        del rest["partial_rotary_factor"]
    unknown = set(rest) - _SCALING_KEYS.get(kind, set())
    problems += [
        f"{name}.{key} {rest[key]!r} has no meaning known for rope_type {kind!r}; "
        "remove it if it is certain not to change the numbers"
        for key in sorted(unknown)
    ]
    if kind == "default":
        return None
    fields = {"kind": kind, **{key: rest[key] for key in rest if key not in unknown}}
    wrong = scaling_problems(fields)
    problems += [f"{name}.{problem}" for problem in wrong]
    return None if wrong else RopeScaling(**fields)


def _write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    fields = {key: getattr(scaling, key) for key in sorted(_SCALING_KEYS[scaling.kind])}
    return {"rope_type": scaling.kind, **fields}
