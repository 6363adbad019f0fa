"""Meta's params.json, the file beside consolidated.00.pth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxllama.config import LlamaConfig, RopeScaling, config_problems, is_count, is_number
from jaxllama.config_formats.fields import FieldTable, Only
from jaxllama.config_formats.quantised import FIELDS, quantised_fields
from jaxllama.errors import ConfigError, join_problems
from jaxllama.presets import PRESETS

# What Meta's reference holds as constants, `apply_scaling` in llama-models `llama3/model.py`.
META_SCALING = RopeScaling(
    kind="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
_FIELDS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
}
_ALSO_READ = {
    "vocab_size",
    "multiple_of",
    "ffn_dim_multiplier",
    "use_scaled_rope",
    "rope_scaling_factor",
}
_OFF = (None, False)
_TABLE = FieldTable(
    read=frozenset({*_FIELDS, *_ALSO_READ, *FIELDS}),
    # The tokenizer says the special tokens' ids, and nothing is dropped in inference.
    harmless=frozenset(
        [
            *("max_batch_size", "max_seq_len", "model_parallel_size", "max_context_len"),
            *("bos_id", "eos_id", "pad_id", "dropout"),
        ]
    ),
    only={
        "moe": Only((None,), "a mixture of experts"),
        "moe_args": Only((None,), "a mixture of experts"),
        "sliding_window": Only((None,), "another attention mask"),
        "bias": Only(_OFF, "biases in the projections"),
        "attn_bias": Only(_OFF, "biases in the attention projections"),
        "norm_type": Only((None, "rmsnorm"), "another norm"),
        "vision_chunk_size": Only((None, -1, 0), "a model that sees images"),
        "vision_max_num_chunks": Only((None, 4), "a model that sees images"),
        "vision_num_cross_attention_layers": Only((None, -1, 0), "a model that sees images"),
        "vision_args": Only((None,), "a model that sees images"),
        "attention_chunk_size": Only((None,), "another attention mask"),
        "use_qk_norm": Only(_OFF, "norms of queries and keys"),
        "nope_layer_interval": Only((None,), "layers without rotation"),
    },
)


def feed_forward_size(dim: int, multiple_of: int, ffn_dim_multiplier: float | None) -> int:
    """Return the width inside the MLP by Meta's rule.

    Source: `FeedForward.__init__` in Meta's llama-models `llama3/model.py`; the truncations to int
    are part of the rule.

    >>> feed_forward_size(4096, 1024, 1.3)
    14336
    """
    width = int(2 * (4 * dim) / 3)
    if ffn_dim_multiplier is not None:
        width = int(ffn_dim_multiplier * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


def read_meta(
    params: Mapping[str, Any],
    *,
    tie_word_embeddings: bool,
    vocab_size: int | None = None,
    source: str = "params.json",
) -> LlamaConfig:
    """Read the dict of Meta's params.json.

    Meta's file does not say everything. Its `use_scaled_rope` stands for constants in Meta's code,
    among them a factor of 8, where Llama 3.2 1B and 3B were published with 32: for a model of their
    shape the file must say `rope_scaling_factor`, this project's own addition.

    Args:
        params: the parsed file.
        tie_word_embeddings: whether the head is the embedding, which only the weights tell: False
            when they hold an `output.weight` of its own.
        vocab_size: rows of the embedding, for files that say -1.
        source: what to call the file in an error, such as its path.

    Raises:
        ConfigError: every missing, unknown or contradictory field, in one message.

    Source: `ModelArgs` in Meta's llama-models `llama3/args.py`.
    """
    if not isinstance(params, Mapping):
        raise ConfigError(f"{source}: {type(params).__name__}, expected an object")
    problems = quantised_fields(params) + _TABLE.harmful(params)
    fields: dict[str, Any] = {ours: params.get(meta) for meta, ours in _FIELDS.items()}
    fields["vocab_size"] = _vocab_size(params.get("vocab_size"), vocab_size, problems)
    fields["intermediate_size"] = _intermediate_size(params, problems)
    fields["head_dim"] = _head_dim(params, problems)
    fields["rope_scaling"] = _rope_scaling(params, problems)
    fields["tie_word_embeddings"] = tie_word_embeddings
    fields["max_position_embeddings"] = None
    named = (_metas_name(p) for p in config_problems(fields))
    problems += [p + _taken_then(p, params) for p in named]
    problems += _TABLE.unknown(params)
    if problems:
        raise ConfigError(join_problems(source, problems))
    return LlamaConfig(**fields)


def _taken_then(problem: str, params: Mapping[str, Any]) -> str:
    """Return what Meta's code takes for a field that is missing, to be stated if it is right."""
    taken = {
        "n_kv_heads": f"n_heads, {params.get('n_heads')!r},",
        "rope_theta": "10000.0 for Llama 1 and 2, 500000.0 for Llama 3,",
        "norm_eps": "1e-05",
    }
    for name, value in taken.items():
        if problem.startswith(f"{name} is missing"):
            return f" (Meta's code takes {value} then)"
    return ""


def write_meta(config: LlamaConfig) -> dict[str, Any]:
    """Return the dict of a params.json that `read_meta` reads back as an equal config.

    Not part of the format, so lost: the special tokens' ids, the stated context, and whether the
    head is tied. `rope_scaling_factor` is written beside `use_scaled_rope`; Meta's reference does
    not read it and computes with a factor of 8 whatever it says.

    Raises:
        ConfigError: the format cannot express head_dim, the MLP's width or the rope scaling.
    """
    problems = []
    heads, dim, scaling = config.num_attention_heads, config.hidden_size, config.rope_scaling
    if config.head_dim * heads != dim:
        problems.append(
            f"head_dim {config.head_dim}, but the format implies hidden_size / num_attention_heads "
            f"= {dim} / {heads}"
        )
    if scaling is not None and scaling != _with_factor(scaling.factor):
        problems.append(
            f"{scaling}, but the format implies {_with_factor(scaling.factor)} with any factor"
        )
    rule = _solve_feed_forward(dim, config.intermediate_size)
    if rule is None:
        problems.append(f"no rule of the format gives intermediate_size {config.intermediate_size}")
    if problems or rule is None:
        raise ConfigError(join_problems("cannot be written as params.json", problems))
    params = {meta: getattr(config, ours) for meta, ours in _FIELDS.items()}
    params |= {"vocab_size": config.vocab_size, "multiple_of": rule[0]}
    if rule[1] is not None:
        params["ffn_dim_multiplier"] = rule[1]
    params["use_scaled_rope"] = scaling is not None
    if scaling is not None:
        params["rope_scaling_factor"] = scaling.factor
    return params


def _with_factor(factor: float) -> RopeScaling:
    return RopeScaling(**{**vars(META_SCALING), "factor": factor})


def _solve_feed_forward(dim: int, intermediate: int) -> tuple[int, float | None] | None:
    """Return a (multiple_of, ffn_dim_multiplier) that gives `intermediate`, the plainest first."""
    ratio = intermediate / max(1, feed_forward_size(dim, 1, None))
    midpoint = (intermediate + 0.5) / max(1, feed_forward_size(dim, 1, None))
    multipliers = [None, *(round(ratio, digits) for digits in range(1, 8)), ratio, midpoint]
    for multiplier in multipliers:
        for multiple_of in (256, 1024, 4096, 512, 2048, 128, 64, 32, 16, 8, 4, 2, 1):
            if feed_forward_size(dim, multiple_of, multiplier) == intermediate:
                return multiple_of, multiplier
    return None


def _vocab_size(stated: Any, given: int | None, problems: list[str]) -> Any:
    if stated in (None, -1):
        return stated if given is None else given
    if given is not None and given != stated:
        problems.append(f"vocab_size {stated!r}, but the embedding has {given} rows")
    return stated


def _intermediate_size(params: Mapping[str, Any], problems: list[str]) -> int:
    """Return Meta's width of the MLP, or a harmless 1 once the reason is among `problems`."""
    multiple_of, multiplier = params.get("multiple_of"), params.get("ffn_dim_multiplier")
    wrong = []
    if not is_count(multiple_of):
        wrong.append(f"multiple_of {multiple_of!r}, expected an integer above 0")
    if multiplier is not None and not (is_number(multiplier) and 0 < multiplier < 1e6):
        wrong.append(f"ffn_dim_multiplier {multiplier!r}, expected a number above 0")
    problems += wrong
    if wrong or not is_count(params.get("dim")):
        return 1
    return feed_forward_size(params["dim"], params["multiple_of"], multiplier)


def _head_dim(params: Mapping[str, Any], problems: list[str]) -> int:
    """Return dim / n_heads, or a harmless 2 once the reason is said."""
    dim: Any = params.get("dim")
    heads: Any = params.get("n_heads")
    if not (is_count(dim) and is_count(heads)):
        return 2
    if dim % heads:
        problems.append(f"dim {dim} is not a multiple of n_heads {heads}")
        return 2
    return dim // heads


def _rope_scaling(params: Mapping[str, Any], problems: list[str]) -> RopeScaling | None:
    scaled, factor = params.get("use_scaled_rope"), params.get("rope_scaling_factor")
    if not (scaled is None or isinstance(scaled, bool)):
        problems.append(f"use_scaled_rope {scaled!r}, expected true or false")
        return None
    if not scaled:
        if factor is not None:
            problems.append(
                f"rope_scaling_factor {factor!r} is given, but use_scaled_rope is not true"
            )
        return None
    if factor is not None:
        try:
            return _with_factor(factor)
        except ConfigError as error:
            problems.append(f"rope_scaling_factor: {error}")
            return None
    shape = tuple(params.get(meta) for meta in ("dim", "n_layers", "n_heads", "n_kv_heads"))
    for name, preset in PRESETS.items():
        scaling = preset.rope_scaling
        same = shape == tuple(getattr(preset, _FIELDS[m]) for m in list(_FIELDS)[:4])
        if same and scaling is not None and scaling.factor != META_SCALING.factor:
            problems.append(
                f"use_scaled_rope means a factor of {META_SCALING.factor} in Meta's reference, but "
                f"this is the shape of {name}, published with {scaling.factor}; add "
                f'"rope_scaling_factor": {scaling.factor} (or the factor it was trained with)'
            )
    return META_SCALING


def _metas_name(problem: str) -> str:
    """Return the problem with the field called what params.json calls it."""
    for meta, ours in _FIELDS.items():
        if problem.startswith(ours + " "):
            return meta + problem.removeprefix(ours)
    return problem
