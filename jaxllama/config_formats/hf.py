"""Hugging Face config.json, with `rope_scaling` (transformers 4) or `rope_parameters` (5)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jaxllama.config import LlamaConfig, RopeScaling, config_problems, is_count, scaling_problems
from jaxllama.config_formats.fields import FieldTable, Only, is_one_of, token_id, token_ids
from jaxllama.config_formats.quantised import FIELDS, quantised_fields
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
# How PaddleNLP spells the scaling: here it has to be off.
_PADDLES = ("rope_scaling_type", "rope_scaling_factor")
_OTHER_MASK = "another attention mask"
_OFF = (None, False)
_ONE = (None, 1)

# Of transformers, of its forks and of other models' configurations that are trained as Llama's.
_ONLY = {
    "model_type": Only(("llama",), "another architecture", required=True),
    "architectures": Only(
        (None, [], ["LlamaForCausalLM"], ["LlamaModel"]), "another architecture or another head"
    ),
    "hidden_act": Only(("silu",), "another activation", aliases=("swish",), required=True),
    "alibi": Only(_OFF, "a bias by distance on the scores instead of rotary embedding"),
    "attention_bias": Only(_OFF, "biases in the attention projections"),
    "attn_bias": Only(_OFF, "biases in the attention projections"),
    "qkv_bias": Only(_OFF, "biases in the attention projections"),
    "mlp_bias": Only(_OFF, "biases in the MLP projections"),
    "bias": Only(_OFF, "biases in the projections"),
    "use_bias": Only(_OFF, "biases in the projections"),
    "pretraining_tp": Only((None, 0, 1), "a sliced order of summation"),
    "sliding_window": Only((None,), _OTHER_MASK),
    "use_sliding_window": Only(_OFF, _OTHER_MASK),
    "attention_chunk_size": Only((None,), _OTHER_MASK),
    "layer_types": Only((None, "full_attention"), _OTHER_MASK, each=True),
    "no_rope_layers": Only((None, 1), "layers without rotation", each=True),  # 0 is without
    "no_rope_layer_interval": Only((None, 0), "layers without rotation"),
    "partial_rotary_factor": Only(_ONE, "rotation of a part of each head"),
    "rotary_pct": Only(_ONE, "rotation of a part of each head"),
    "rope_interleaved": Only(_OFF, "interleaved rotary pairs"),
    "add_bias_linear": Only(_OFF, "biases in the projections"),
    "normalization": Only((None, "rmsnorm", "RMSNorm"), "another norm"),
    "vision_config": Only((None,), "a Llama within a larger model", "give the text model alone"),
    "text_config": Only((None,), "a Llama within a larger model", "give the text model alone"),
    "mm_vision_tower": Only((None,), "a Llama within a larger model"),
    "qk_layernorm": Only(_OFF, "norms of queries and keys"),
    "parallel_residual": Only(_OFF, "attention and MLP side by side"),
    "use_parallel_residual": Only(_OFF, "attention and MLP side by side"),
    "logit_scale": Only(_ONE, "scaled logits"),
    "logits_scaling": Only(_ONE, "scaled logits"),
    "scale_emb": Only(_ONE, "scaled embeddings"),
    "scale_depth": Only((None,), "scaled residual branches"),
    "dim_model_base": Only((None,), "scaled logits"),
    "attention_multiplier": Only((None,), "another scale of the scores"),
    "query_pre_attn_scalar": Only((None,), "another scale of the scores"),
    "clip_qkv": Only((None,), "capped projections"),
    "embedding_multiplier": Only(_ONE, "scaled embeddings"),
    "residual_multiplier": Only(_ONE, "scaled residual branches"),
    "attn_logit_softcapping": Only((None,), "capped attention scores"),
    "final_logit_softcapping": Only((None,), "capped logits"),
    "num_experts": Only((None, 0, 1), "a mixture of experts"),
    "num_local_experts": Only((None, 0, 1), "a mixture of experts"),
    "is_decoder": Only((None, False, True), "an encoder"),
    "is_encoder_decoder": Only(_OFF, "an encoder and a decoder"),
    "add_cross_attention": Only(_OFF, "cross-attention"),
    "cross_attention_hidden_size": Only((None,), "cross-attention"),
    "tie_encoder_decoder": Only(_OFF, "an encoder and a decoder"),
    "pruned_heads": Only((None, {}), "pruned heads"),
    "chunk_size_feed_forward": Only((None, 0), "a chunked MLP"),
}
# Fields that no output of a forward pass depends on: bookkeeping, training, generation defaults.
# A conversion carries them along.
# fmt: off
HARMLESS = frozenset([
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_flash_attn_2_enabled",
    "_name_or_path", "attention_dropout", "attn_implementation", "auto_map", "bad_words_ids",
    "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "encoder_no_repeat_ngram_size", "experts_implementation",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "hidden_dropout_prob", "id2label", "initializer_range",
    "is_llama_config", "label2id", "length_penalty", "max_length", "max_sequence_length",
    "min_length", "model_max_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores",
    "prefix", "problem_type", "remove_invalid_values", "repetition_penalty", "resid_pdrop",
    "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tokenizer_class", "top_k", "top_p",
    "torch_dtype", "torchscript", "transformers.js_config", "transformers_version", "typical_p",
    "unsloth_fixed", "unsloth_version", "use_bfloat16", "use_cache", "use_flash_attn",
    "use_flash_attention_2",
    # Of training: dropout, noise and recomputation; and limits of length.
    "attn_pdrop", "classifier_dropout", "embd_pdrop", "embedding_dropout", "gradient_checkpointing",
    "hidden_dropout", "max_seq_len", "max_window_layers", "neftune_noise_alpha",
    # PaddleNLP: how a training was laid out, and which of several equal kernels ran.
    "dpo_config", "fuse_attention_ffn", "fuse_attention_qkv", "fuse_sequence_parallel_allreduce",
    "fuse_swiglu", "long_sequence_init_args", "long_sequence_strategy_name",
    "long_sequence_strategy_type", "no_recompute_layers", "paddlenlp_version",
    "pp_recompute_interval", "recompute_granularity", "rope_fusion_level", "seq_length",
    "sep_parallel_degree", "sequence_parallel", "tensor_parallel_degree", "tensor_parallel_output",
    "tensor_parallel_rank", "use_flash_attention", "use_flash_attention_for_generation",
    "use_fused_dropout_add", "use_fused_linear", "use_fused_rms_norm", "use_fused_rope",
    "use_high_performance_gemm", "use_last_token_for_generation", "use_normal_precision_align_tool",
    "use_recompute", "virtual_pp_degree",
])
# fmt: on
TABLE = FieldTable(read=frozenset({*_READ, *_PADDLES, *FIELDS}), harmless=HARMLESS, only=_ONLY)
_SCALING_KEYS = {
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


def read_hf(
    config: Mapping[str, Any], *, source: str = "config.json", notes: list[str] | None = None
) -> LlamaConfig:
    """Read the dict of a Hugging Face config.json.

    `head_dim` alone may be left out, as Hugging Face defines it to be hidden_size /
    num_attention_heads then. A field this reader does not know is refused, not skipped: it could
    change the numbers.

    Args:
        config: the parsed file.
        source: what to call it in an error, such as its path.
        notes: gets a line for each value that is read otherwise than it is written.

    Raises:
        ConfigError: every missing, unsupported, unknown or contradictory field, in one message.

    Source: `LlamaConfig` and `modeling_rope_utils.py` in Hugging Face transformers.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{source}: {type(config).__name__}, expected an object")
    notes = [] if notes is None else notes
    problems = quantised_fields(config) + TABLE.harmful(config)
    notes += TABLE.aliased(config)
    if len(stated := {str(config[n]) for n in ("dtype", "torch_dtype") if config.get(n)}) > 1:
        notes.append(
            f"dtype and torch_dtype are {' and '.join(sorted(stated))}: tensors keep theirs"
        )
    fields: dict[str, Any] = {name: config.get(name) for name in _SAME_NAME}
    for name in ("bos_token_id", "pad_token_id"):
        fields[name] = token_id(name, fields[name], notes)
    fields["eos_token_ids"] = token_ids("eos_token_id", config.get("eos_token_id"), notes)
    fields["head_dim"] = _head_dim(config)
    fields["rope_theta"], fields["rope_scaling"] = _rope(config, problems)
    named = (p.replace("eos_token_ids ", "eos_token_id ", 1) for p in config_problems(fields))
    problems += [p + _taken_then(p, config) for p in named]
    problems += TABLE.unknown(config)
    if problems:
        raise ConfigError(join_problems(source, problems))
    return LlamaConfig(**fields)


def carried_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config.json says besides the numbers: what a conversion carries along."""
    known = HARMLESS | _ONLY.keys() - {"architectures", "model_type", "hidden_act"}
    return {name: value for name, value in content.items() if name in known}


def with_carried(config: LlamaConfig, fields: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the dict of a config.json of a model and of fields that were carried along.

    Args:
        config: the model's numbers.
        fields: what `carried_fields` returned once.
        source: where they stand now, for an error.

    Raises:
        ConfigError: they say more than what no number depends on.
    """
    if others := sorted(fields.keys() - carried_fields(fields).keys()):
        raise ConfigError(f"{source}: {others[0]!r} is no field that is carried along; remove it")
    merged = {**config.to_hf(), **fields}
    read_hf(merged, source=source)  # says which of the fields is harmful with its value
    return merged


def _taken_then(problem: str, config: Mapping[str, Any]) -> str:
    """Return what transformers takes for a field that is missing, to be stated if it is right."""
    taken = {
        "num_key_value_heads": config.get("num_attention_heads"),
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    for name, value in taken.items():
        if problem.startswith(f"{name} is missing") and value is not None:
            return f" (transformers takes {value!r} then)"
    return ""


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
    kind, factor = (config.get(name) for name in _PADDLES)
    if kind not in (None, "none", "default") or factor not in (None, 1):
        problems.append(
            f"rope_scaling_type {kind!r} and rope_scaling_factor {factor!r} are PaddleNLP's "
            'spelling of the rotary scaling, which is not supported; write "rope_scaling": '
            f"{json.dumps({'rope_type': kind, 'factor': factor}, default=str)[:100]} instead"
        )
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
    if any(theta is not first and theta != first for theta in given.values()):  # NaN is not itself
        said = ", ".join(f"{name} {theta!r}" for name, theta in given.items())
        problems.append(f"{said} contradict each other; {_likelier(given)}")
    return first, found[0][2] if found else None


def _likelier(thetas: Mapping[str, Any]) -> str:
    """Say which of several thetas to keep, where one is a default that a release writes."""
    plain, stated = thetas.get("rope_theta"), thetas.get("rope_parameters.rope_theta")
    if plain == 10000.0 and stated is not None:
        return (
            f"likelier is {stated!r}, with the scaling of rope_parameters: 10000.0 is the default "
            "that transformers 4 adds when it saves a file of version 5; remove rope_theta"
        )
    return "keep one of them"


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
    if is_one_of(rest.get("partial_rotary_factor"), (1,)):
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
