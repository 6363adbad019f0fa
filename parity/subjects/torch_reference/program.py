"""The reference's operators as data: what each computes, step by step, and from what.

One interpreter runs them for the reference and for trials of what may be wrong with a subject: a
fault is an edit of these programs (see `parity.diagnose.edits`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jaxllama.config import LlamaConfig, RopeScaling
from parity.subjects.torch_reference.operations import (
    Angles,
    Arithmetic,
    Binary,
    Cast,
    CastLike,
    ForHeads,
    Frequency,
    Half,
    Hide,
    JoinHalves,
    JoinHeads,
    Linear,
    MatMul,
    Operation,
    Pairs,
    PerHead,
    Permute,
    ReadBack,
    Reduce,
    Rows,
    Select,
    Show,
    Softmax,
    SplitHeads,
    Unary,
    Value,
    Where,
)


@dataclass(frozen=True)
class Step:
    """One value of a program.

    Attributes:
        name: how later steps call it.
        inputs: names of earlier steps or of the program's operands.
        fn: what makes it of them.
    """

    name: str
    inputs: tuple[str, ...]
    fn: Operation


Program = tuple[Step, ...]


def run_program(program: Program, operands: Mapping[str, Value], arithmetic: Arithmetic) -> Tensor:
    """Return the value of a program's last step.

    Args:
        program: its steps, in order.
        operands: what its steps read and no step makes.
        arithmetic: in which it is done.

    Raises:
        KeyError: an operand that is not given.
    """
    last_read = {name: step for step in program for name in step.inputs}
    made: dict[str, Any] = {}
    value: Any = None
    for step in program:
        values = [made[name] if name in made else operands[name] for name in step.inputs]
        value = made[step.name] = step.fn(arithmetic, *values)
        del values
        # A step's value may be as large as all attention maps of a layer.
        for name in step.inputs:
            if last_read[name] is step:
                made.pop(name, None)
    return value


def operand_names(program: Program) -> tuple[str, ...]:
    """Return what a program reads that no step of it makes, in the order of reading."""
    made = {step.name for step in program}
    return tuple(
        dict.fromkeys(name for step in program for name in step.inputs if name not in made)
    )


def bind(program: Program, **names: str) -> Program:
    """Return a program that reads operands under other names."""
    return tuple(redirect(step, names) for step in program)


def redirect(step: Step, names: Mapping[str, str]) -> Step:
    """Return a step that reads some values under other names; itself if it reads none of them."""
    if not any(name in names for name in step.inputs):
        return step
    return replace(step, inputs=tuple(names.get(name, name) for name in step.inputs))


# Operators. The last step's name is the operator's.

EMBED: Program = (
    Step("rows", ("weight", "tokens"), Rows()),
    Step("embed", ("rows",), Cast("compute")),
)
NORM: Program = (
    Step("wide", ("x",), Cast("wide")),
    Step("square", ("wide",), Unary("square")),
    Step("mean", ("square",), Reduce("mean")),
    Step("shifted", ("mean", "eps"), Binary("+")),
    Step("rms", ("shifted",), Unary("square root")),
    Step("normed", ("wide", "rms"), Binary("/")),
    Step("rounded", ("normed", "x"), CastLike()),
    Step("gain", ("weight", "x"), CastLike()),
    Step("norm", ("rounded", "gain"), Binary("*")),
)
LINEAR: Program = (Step("product", ("x", "weight"), Linear()),)
ANGLES: Program = (Step("angle", ("positions", "freq"), Angles()),)
COS: Program = (Step("cos", ("angle",), Unary("cosine")),)
SIN: Program = (Step("sin", ("angle",), Unary("sine")),)
ROTATE: Program = (
    Step("wide", ("x", "cos"), CastLike()),
    Step("first", ("wide",), Half(0)),
    Step("second", ("wide",), Half(1)),
    Step("cosines", ("cos",), PerHead()),
    Step("sines", ("sin",), PerHead()),
    Step("first_cos", ("first", "cosines"), Binary("*")),
    Step("second_sin", ("second", "sines"), Binary("*")),
    Step("turned_first", ("first_cos", "second_sin"), Binary("-")),
    Step("second_cos", ("second", "cosines"), Binary("*")),
    Step("first_sin", ("first", "sines"), Binary("*")),
    Step("turned_second", ("second_cos", "first_sin"), Binary("+")),
    Step("joined", ("turned_first", "turned_second"), JoinHalves()),
    Step("rotated", ("joined", "x"), CastLike()),
)
SCORES: Program = (
    Step("wide_q", ("q",), Cast("wide")),
    Step("wide_k", ("k",), Cast("wide")),
    Step("queries", ("wide_q",), Permute((0, 2, 1, 3))),
    Step("columns", ("wide_k",), Permute((0, 2, 3, 1))),
    Step("products", ("queries", "columns"), MatMul()),
    Step("scores", ("products", "scale"), Binary("*")),
)
PROBS: Program = (
    Step("visible", ("mask",), ForHeads()),
    Step("hidden", ("scores", "visible"), Hide()),
    Step("softmax", ("hidden",), Softmax()),
    Step("probs", ("softmax", "visible"), Show()),
)
CONTEXT: Program = (
    Step("weights", ("probs", "v"), CastLike()),
    Step("by_head", ("v",), Permute((0, 2, 1, 3))),
    Step("weighted", ("weights", "by_head"), MatMul()),
    Step("context", ("weighted",), Permute((0, 2, 1, 3))),
)
ACTIVATION: Program = (
    Step("activated", ("gate",), Unary("silu")),
    Step("activation", ("activated", "up"), Binary("*")),
)
# Which keys a query sees: none later, no pads, of its own document, within the window. Of queries
# the operands are [B T 1], of keys [B 1 S]. Within a document positions count real tokens.
MASK: Program = (
    Step("distance", ("q_position", "k_position"), Binary("-")),
    Step("causal", ("distance", "zero"), Binary(">=")),
    Step("edge", ("q_position", "window"), Binary("-")),
    Step("near", ("k_position", "edge"), Binary(">")),
    Step("alike", ("q_segment", "k_segment"), Binary("==")),
    Step("together", ("alike", "undivided"), Binary("or")),
    Step("real", ("q_sees", "k_valid"), Binary("and")),
    Step("limited", ("near", "unlimited"), Binary("or")),
    Step("past", ("causal", "limited"), Binary("and")),
    Step("own", ("past", "together"), Binary("and")),
    Step("mask", ("own", "real"), Binary("and")),
)
# What columns find in a cache. Operands are of all columns so far: `before` and `count` are the
# real tokens of a row before a column's call, and in it up to the column.
CACHE: Program = (
    Step("filled", ("before", "count"), Binary("+")),
    Step("slot", ("filled", "one"), Binary("-")),
    Step("fits", ("slot", "capacity"), Binary("<")),
    Step("kept", ("c_valid", "fits"), Binary("and")),
    Step("at", ("kept", "slot", "capacity"), Where()),
    Step("held", ("made", "at", "own", "call", "capacity", "row", "factor per call"), ReadBack()),
)
_SLOTS = CACHE[:-1]
# Through a cache a query goes by what the cache says of each key.
CACHED_MASK: Program = (
    *_SLOTS,
    Step("held_position", ("c_position", "at", "own", "call", "capacity", "row"), ReadBack()),
    Step("held_segment", ("c_segment", "at", "own", "call", "capacity", "row"), ReadBack()),
    Step("k_position", ("held_position",), ForHeads()),
    Step("k_segment", ("held_segment",), ForHeads()),
    *MASK,
)
HANDED: Program = (Step("handed", ("handed_on",), Unary("identity")),)
RESIDUAL: Program = (Step("stream", ("x", "added"), Binary("+")),)


def inv_freq_program(scaling: RopeScaling | None) -> Program:
    """Return what computes a table of frequencies [R], float64, fastest first.

    Its operands are `theta`, `head_dim` and the scaling's fields.

    Source: arXiv 2104.09864; llama3 scaling as in Meta's llama-models, `apply_scaling`.
    """
    plain: Program = (
        Step("pair", ("head_dim",), Pairs()),
        Step("freq", ("theta", "pair", "head_dim"), Frequency()),
    )
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return (*plain, Step("scaled", ("freq", "factor"), Binary("/")))
    return (
        *plain,
        Step("wavelength", ("turn", "freq"), Binary("/")),
        Step("turns", ("context", "wavelength"), Binary("/")),
        Step("over", ("turns", "low"), Binary("-")),
        Step("blend", ("over", "span"), Binary("/")),
        Step("rest", ("one", "blend"), Binary("-")),
        Step("slow_share", ("rest", "freq"), Binary("*")),
        Step("slow_part", ("slow_share", "factor"), Binary("/")),
        Step("fast_part", ("blend", "freq"), Binary("*")),
        Step("blended", ("slow_part", "fast_part"), Binary("+")),
        Step("slow", ("freq", "factor"), Binary("/")),
        Step("is_slow", ("wavelength", "longest"), Binary(">")),
        Step("stretched", ("is_slow", "slow", "blended"), Where()),
        Step("is_fast", ("wavelength", "shortest"), Binary("<")),
        Step("scaled", ("is_fast", "freq", "stretched"), Where()),
    )


def rope_constants(config: LlamaConfig) -> dict[str, Value]:
    """Return the numbers that a table of frequencies is computed of."""
    found: dict[str, Value] = {"theta": config.rope_theta, "head_dim": config.head_dim}
    scaling = config.rope_scaling
    if scaling is None:
        return found
    found["factor"] = scaling.factor
    context, low, high = (
        scaling.original_max_position_embeddings,
        scaling.low_freq_factor,
        scaling.high_freq_factor,
    )
    if context is None or low is None or high is None:
        return found
    return found | {
        "context": context,
        "low": low,
        "span": high - low,
        "longest": context / low,
        "shortest": context / high,
        "turn": 2 * math.pi,
        "one": 1.0,
    }


def kv_head_map(config: LlamaConfig) -> Tensor:
    """Return which kv head each query head reads [N]: neighbours share one."""
    group = config.num_attention_heads // config.num_key_value_heads
    return torch.arange(config.num_attention_heads) // group


_HEADS: Program = (*LINEAR, Step("heads", ("product", "head_dim"), SplitHeads()))
_ROTATED: Program = (*bind(ANGLES, freq="rope.inv_freq"), *COS, *SIN, *ROTATE)

# By short names of taps: what computes each of what the stage's earlier taps, its weight and the
# model's constants are. `keys` and `values` are all that is attended to, `handed_on` is what the
# stage before has made of the residual stream.
PROGRAM: dict[str, Program] = {
    "embed": EMBED,
    "input": HANDED,
    "input_layernorm": bind(NORM, x="input"),
    "q_proj": bind(_HEADS, x="input_layernorm"),
    "k_proj": bind(_HEADS, x="input_layernorm"),
    "v_proj": bind(_HEADS, x="input_layernorm"),
    "q_rope": bind(_ROTATED, x="q_proj"),
    "k_rope": bind(_ROTATED, x="k_proj"),
    "keys": CACHE,
    "values": CACHE,
    "attn_scores": (Step("k", ("keys", "kv_heads"), Select()), *bind(SCORES, q="q_rope")),
    "attn_probs": bind(PROBS, scores="attn_scores"),
    "attn_context": (
        Step("v", ("values", "kv_heads"), Select()),
        *bind(CONTEXT, probs="attn_probs"),
    ),
    "o_proj": (Step("joined", ("attn_context",), JoinHeads()), *bind(LINEAR, x="joined")),
    "post_attention": bind(RESIDUAL, x="input", added="o_proj"),
    "post_attention_layernorm": bind(NORM, x="post_attention"),
    "gate_proj": bind(LINEAR, x="post_attention_layernorm"),
    "up_proj": bind(LINEAR, x="post_attention_layernorm"),
    "mlp_act": bind(ACTIVATION, gate="gate_proj", up="up_proj"),
    "down_proj": bind(LINEAR, x="mlp_act"),
    "output": bind(RESIDUAL, x="post_attention", added="down_proj"),
    "norm": bind(NORM, x="output"),
    "logits": (Step("wide", ("norm",), Cast("wide")), *bind(LINEAR, x="wide")),
}
