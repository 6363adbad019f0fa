"""GGUF metadata of the `llama` architecture, as llama.cpp's converters write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllama.config import LlamaConfig, RopeScaling, config_problems, is_count, scaling_problems
from jaxllama.config_formats.fields import FieldTable, Only, token_id, token_ids
from jaxllama.errors import ConfigError, join_problems

_FIELDS = {
    "llama.embedding_length": "hidden_size",
    "llama.feed_forward_length": "intermediate_size",
    "llama.block_count": "num_hidden_layers",
    "llama.attention.head_count": "num_attention_heads",
    "llama.attention.head_count_kv": "num_key_value_heads",
    "llama.attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "llama.rope.freq_base": "rope_theta",
    "llama.context_length": "max_position_embeddings",
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}
_VOCAB = "llama.vocab_size"
_HEAD_DIM_KEYS = (
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.rope.dimension_count",
)
_EOS_KEYS = (
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
)
_TYPE, _FACTOR, _CONTEXT = (
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.rope.scaling.original_context_length",
)
_LEGACY_FACTOR = "llama.rope.scale_linear"
# Keys of our own, for what the format has no key for; llama.cpp passes over them.
_LOW, _HIGH, _EOS_LIST = (
    "jaxllama.rope.scaling.low_freq_factor",
    "jaxllama.rope.scaling.high_freq_factor",
    "jaxllama.eos_token_ids",
)
_READ = {*_FIELDS, _VOCAB, *_HEAD_DIM_KEYS, _TYPE, _FACTOR, _CONTEXT, _LEGACY_FACTOR}
_READ |= {_LOW, _HIGH, _EOS_LIST}
_OTHER = "another kind of model"
# llama.cpp reads the keys of the architecture, `general.` and `tokenizer.`; of the latter two none
# changes a number but these, and whoever writes a file may add namespaces of his own.
_TABLE = FieldTable(
    read=frozenset(_READ),
    harmless=frozenset(
        [
            "llama.rope.scaling.finetuned",
            "llama.tensor_data_layout",
            "llama.attention.layer_norm_epsilon",
        ]
    ),
    only={
        "general.type": Only(("model",), _OTHER),
        "llama.attention.causal": Only((True,), _OTHER),
        "llama.expert_count": Only((0,), _OTHER),
        "llama.expert_used_count": Only((0,), _OTHER),
        "llama.use_parallel_residual": Only((False,), _OTHER),
        "llama.attention.sliding_window": Only((0,), "another attention mask"),
        "llama.pooling_type": Only((0,), _OTHER),
        "llama.attention.scale": Only((0,), "another scale of the scores"),
        "llama.rope.scaling.attn_factor": Only((0, 1), "scaled attention"),
        "llama.embedding_scale": Only((0, 1), "scaled embeddings"),
        "llama.residual_scale": Only((0, 1), "scaled residual branches"),
        "llama.logit_scale": Only((0, 1), "scaled logits"),
    },
    kind="key",
)
# What decides how text becomes tokens, of the vocabularies that are read: byte-level BPE.
_TOKENIZER = FieldTable(
    read=frozenset(
        f"tokenizer.{key}"
        for key in (
            *("ggml.model", "ggml.pre", "ggml.tokens", "ggml.token_type", "ggml.merges"),
            *("ggml.add_bos_token", "chat_template"),
            *(
                f"ggml.{role}_token_id"
                for role in ("bos", "eos", "eot", "eom", "unknown", "padding")
            ),
        )
    ),
    # Scores and spaces are of other vocabularies; the rest are roles that no text is encoded with.
    harmless=frozenset(
        f"tokenizer.{key}"
        for key in (
            *("ggml.scores", "ggml.token_type_count", "ggml.add_space_prefix", "huggingface.json"),
            *("ggml.remove_extra_whitespaces", "ggml.precompiled_charsmap", "chat_templates"),
            *("rwkv.world", "ggml.add_sep_token", "ggml.eog_token_ids"),
            *(f"ggml.{r}_token_id" for r in ("seperator", "separator", "cls", "mask", "middle")),
            *(f"ggml.{r}_token_id" for r in ("prefix", "suffix", "fim_pre", "fim_suf", "fim_mid")),
            *(f"ggml.{r}_token_id" for r in ("fim_pad", "fim_rep", "fim_sep")),
        )
    ),
    only={
        "tokenizer.ggml.add_eos_token": Only((False,), "an end of text after every prompt"),
        "tokenizer.ggml.normalizer.lowercase": Only((False,), "text in lower case"),
    },
    harmless_under=("tokenizer.chat_template.",),
    kind="key",
    could="change the tokens",
)
_OF_THE_MODEL = ("llama.", "jaxllama.")
_LLAMA3_DEFAULTS = (1.0, 4.0, 8192)


def shortest_float(value: Any) -> float:
    """Return the shortest decimal that rounds to the same float32: what the author of a file wrote.

    >>> shortest_float(9.999999747378752e-06)
    1e-05
    """
    with np.errstate(over="ignore"):  # beyond float32 is inf, and refused as such
        return float(str(np.float32(value)))


def read_gguf(
    metadata: Mapping[str, object],
    *,
    tie_word_embeddings: bool,
    vocab_size: int | None = None,
    rope_freqs: np.ndarray | None = None,
    source: str = "GGUF metadata",
    notes: list[str] | None = None,
) -> LlamaConfig:
    """Read a GGUF file's metadata.

    Its floats are float32; each is read as the shortest decimal that gives the same float32, so
    that 9.999999747378752e-06 is 1e-05 again.

    Args:
        metadata: values by key; numpy scalars and arrays are accepted.
        tie_word_embeddings: whether the head is the embedding, which only the weights tell: True
            when the file has no `output.weight`.
        vocab_size: rows of the embedding, for files without `llama.vocab_size`.
        rope_freqs: the tensor `rope_freqs.weight` [H/2], if there is one. It is how the format
            stores llama3 scaling; the factors are solved from it and must reproduce it.
        source: what to call the file in an error, such as its path.
        notes: gets a line for each value that is read otherwise than it is written.

    Raises:
        ConfigError: every missing, unsupported, unknown or contradictory field, in one message.

    Source: `gguf-py/gguf/constants.py` and `convert_hf_to_gguf.py` in llama.cpp.
    """
    values = {key: _plain(value) for key, value in metadata.items()}
    problems = []
    if values.get("general.architecture") != "llama":
        found = values.get("general.architecture")
        problems.append(f"general.architecture {found!r}, expected 'llama'")
    problems += _TABLE.harmful(values)
    notes = [] if notes is None else notes
    fields: dict[str, Any] = {ours: values.get(key) for key, ours in _FIELDS.items()}
    fields["head_dim"] = _head_dim(values, problems)
    fields["vocab_size"] = _vocab_size(values.get(_VOCAB), vocab_size, problems)
    for name in ("bos_token_id", "pad_token_id"):
        fields[name] = token_id(name, fields[name], notes)
    fields["eos_token_ids"] = token_ids("eos_token_id", _eos(values), notes)
    fields["tie_word_embeddings"] = tie_word_embeddings
    fields["rope_scaling"] = None
    problems += [_ggufs_name(problem) for problem in config_problems(fields)]
    problems += _TABLE.unknown({k: v for k, v in values.items() if k.startswith(_OF_THE_MODEL)})
    if problems:
        raise ConfigError(join_problems(source, problems))
    fields["rope_scaling"] = _scaling(values, fields, rope_freqs, problems, notes)
    if problems:
        raise ConfigError(join_problems(source, problems))
    return LlamaConfig(**fields)


def tokenizer_problems(metadata: Mapping[str, object]) -> list[str]:
    """Return what is wrong with the keys of a GGUF file's tokenizer; empty when nothing is."""
    keys = {key: _plain(v) for key, v in metadata.items() if key.startswith("tokenizer.")}
    return _TOKENIZER.harmful(keys) + _TOKENIZER.unknown(keys)


def write_gguf(config: LlamaConfig) -> dict[str, Any]:
    """Return GGUF metadata that `read_gguf` reads back as an equal config.

    llama3 scaling is in no key of the format: store `RopeScaling.frequency_factors` of the unscaled
    frequencies as the float32 tensor `rope_freqs.weight`. Floats are to be stored as float32.
    """
    metadata = {
        "general.architecture": "llama",
        **{key: getattr(config, ours) for key, ours in _FIELDS.items()},
        _VOCAB: config.vocab_size,
        **dict.fromkeys(_HEAD_DIM_KEYS, config.head_dim),
    }
    scaling, eos = config.rope_scaling, config.eos_token_ids
    if scaling is not None and scaling.kind == "linear":
        metadata |= {_TYPE: "linear", _FACTOR: scaling.factor}
    elif scaling is not None:
        metadata[_CONTEXT] = scaling.original_max_position_embeddings
        if (scaling.low_freq_factor, scaling.high_freq_factor) != _LLAMA3_DEFAULTS[:2]:
            metadata |= {_LOW: scaling.low_freq_factor, _HIGH: scaling.high_freq_factor}
    if eos:
        metadata[_EOS_KEYS[0]] = eos[0]
    if len(eos) > 1:
        metadata[_EOS_LIST] = list(eos)
    return {key: value for key, value in metadata.items() if value is not None}


def _plain(value: object) -> Any:
    """Return a Python value; floats as the shortest decimal, a list of equal items as the item."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return shortest_float(value)
    return value


def _head_dim(values: Mapping[str, Any], problems: list[str]) -> Any:
    """Return the head dimension: stated by up to three keys that must agree, else D / N."""
    stated = {key: values[key] for key in _HEAD_DIM_KEYS if key in values}
    first = next(iter(stated.values()), None)
    if any(value != first for value in stated.values()):
        said = ", ".join(f"{key} {value!r}" for key, value in stated.items())
        problems.append(f"{said} differ; only one head dimension, rotated whole, is supported")
    if stated:
        return first
    dim, heads = values.get("llama.embedding_length"), values.get("llama.attention.head_count")
    if is_count(dim) and is_count(heads) and dim % heads == 0:
        return dim // heads
    return None


def _vocab_size(stated: Any, given: int | None, problems: list[str]) -> Any:
    if stated is not None and given is not None and stated != given:
        problems.append(f"{_VOCAB} {stated!r}, but the embedding has {given} rows")
    return given if stated is None else stated


def _eos(values: Mapping[str, Any]) -> Any:
    """Return the end tokens: our own list, else what the format's keys name, each once."""
    if _EOS_LIST in values:
        return values[_EOS_LIST]
    ids: list[Any] = []
    for key in _EOS_KEYS:
        if key in values and values[key] not in ids:
            ids.append(values[key])
    return tuple(ids)


def _scaling(
    values: Mapping[str, Any],
    fields: Mapping[str, Any],
    rope_freqs: np.ndarray | None,
    problems: list[str],
    notes: list[str],
) -> RopeScaling | None:
    """Return the scaling: linear from the metadata, llama3 from the tensor of divisors."""
    # llama.cpp takes a factor without a type for linear scaling.
    factors = {key: values[key] for key in (_FACTOR, _LEGACY_FACTOR) if key in values}
    factor = next(iter(factors.values()), 0.0)
    if len(factors) == 2 and factor != factors[_LEGACY_FACTOR]:
        said = ", ".join(f"{key} {value!r}" for key, value in factors.items())
        problems.append(f"{said} contradict each other; keep one of them")
        return None
    if values.get(_TYPE) == "none" and factor not in (0, 1):
        notes.append(f"{_TYPE} 'none' is taken, {_FACTOR} {factor!r} beside it is left")
    kind = values.get(_TYPE, "none" if factor in (0, 1) else "linear")
    if kind not in ("none", "linear"):
        problems.append(f"{_TYPE} {kind!r} is not supported; 'none' and 'linear' are")
        return None
    if kind == "none":
        return None if rope_freqs is None else _solve_llama3(values, fields, rope_freqs, problems)
    if rope_freqs is not None:
        problems.append(f"{_TYPE} 'linear' together with rope_freqs.weight is not supported")
        return None
    wrong = scaling_problems({"kind": "linear", "factor": factor})
    problems += [f"{_FACTOR}: {problem}" for problem in wrong]
    return None if wrong else RopeScaling(kind="linear", factor=factor)


def _solve_llama3(
    values: Mapping[str, Any],
    fields: Mapping[str, Any],
    rope_freqs: np.ndarray,
    problems: list[str],
) -> RopeScaling | None:
    """Return the llama3 scaling that gives exactly these divisors, None if all are 1."""
    half = fields["head_dim"] // 2
    divisors = np.asarray(rope_freqs, np.float64)
    if divisors.shape != (half,) or not (np.isfinite(divisors).all() and (divisors > 0).all()):
        problems.append(
            f"rope_freqs.weight has shape {divisors.shape} and values {divisors}, "
            f"expected ({half},) = (head_dim / 2,), finite and above 0"
        )
        return None
    if (divisors == 1).all():
        return None
    low, high, context = _LLAMA3_DEFAULTS
    low, high = values.get(_LOW, low), values.get(_HIGH, high)
    context = values.get(_CONTEXT, context)
    bounds = {"low_freq_factor": low, "high_freq_factor": high}
    bounds["original_max_position_embeddings"] = context
    if wrong := scaling_problems({"kind": "llama3", "factor": 1.0, **bounds}):
        problems += [f"rope_freqs.weight: {problem}" for problem in wrong]
        return None
    inv_freq = fields["rope_theta"] ** -(np.arange(half) / half)
    # The slowest frequency is divided most. Inside the blended band its divisor is less than the
    # factor, and the blend has to be undone.
    turns = context * inv_freq[-1] / (2 * np.pi)
    keep = min(1.0, max(0.0, (turns - low) / (high - low)))
    exact = (1 - keep) / (1 / divisors[-1] - keep) if keep < 1 / divisors[-1] else np.inf
    # Undoing the blend loses digits, so the roundest factor that reproduces the tensor is taken.
    rounded = [round(exact, digits) for digits in range(5)] if keep > 0 and exact < 1e9 else []
    for factor in (*rounded, shortest_float(exact)):
        scaling = {"kind": "llama3", "factor": factor, **bounds}
        if scaling_problems(scaling):
            continue
        solved = RopeScaling(**scaling)
        # Writers compute in float32: an error of 1e-7 in a frequency is up to 4e-6 in a divisor.
        if np.allclose(solved.frequency_factors(inv_freq), divisors, rtol=1e-5, atol=0):
            return solved
    problems.append(
        f"rope_freqs.weight ({divisors.min():g} to {divisors.max():g}) is not what llama3 scaling "
        f"gives with low_freq_factor {low}, high_freq_factor {high} and an original context of "
        f"{context} for any factor; no other scaling is supported"
    )
    return None


def _ggufs_name(problem: str) -> str:
    """Return the problem with the field called what GGUF calls it."""
    for key, ours in {**_FIELDS, _VOCAB: "vocab_size"}.items():
        if problem.startswith(ours + " "):
            return key + problem.removeprefix(ours)
    return problem
