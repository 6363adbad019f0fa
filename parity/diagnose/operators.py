"""What the operators of a layer read, and how causes change them.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, H head dim, D model dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite
from parity.subjects.torch_reference.operands import weight_name

NORM_INPUTS = {
    "input_layernorm": "input",
    "post_attention_layernorm": "post_attention",
    "norm": "output",
}
LINEAR_INPUTS = {
    "q_proj": "input_layernorm",
    "k_proj": "input_layernorm",
    "v_proj": "input_layernorm",
    "o_proj": "attn_context",
    "gate_proj": "post_attention_layernorm",
    "up_proj": "post_attention_layernorm",
    "down_proj": "mlp_act",
    "logits": "norm",
}
LINEARS = tuple(LINEAR_INPUTS)
NORMS = tuple(NORM_INPUTS)
WEIGHTED = (*NORMS, *LINEARS, "embed")
ROTATED = {"q_rope": "q_proj", "k_rope": "k_proj"}

Value = Callable[[MutationSite], Tensor]


def rotations(
    evidence: Evidence, cause: str, said: str, wrong: Value, **more: Unpack[Facts]
) -> Iterator[Hypothesis]:
    """Yield a wrong rotation of queries and keys, then of the one at hand."""
    here = Mutation(evidence.short, wrong)
    if evidence.short == "q_rope":
        both = here, Mutation("k_rope", wrong)
        yield Hypothesis(cause, f"{said} of q and k", both, **more)
    yield Hypothesis(cause, f"{said} of {evidence.short[0]} alone", (here,), **more)


def unrotate(site: MutationSite) -> Tensor:
    """Return q or k before its rotation."""
    return site.seen[ROTATED[site.tap]]


def norm_weight(site: MutationSite) -> Tensor:
    """Return the weight of the norm at hand."""
    name = weight_name(site.tap, site.layer, site.reference.config)
    return site.reference.weight(name).to(site.value.dtype)


def norm_input(site: MutationSite) -> Tensor:
    """Return what the norm at hand is given, in at least float32."""
    return site.seen[NORM_INPUTS[site.tap]].to(site.reference.wide)


def norms(
    evidence: Evidence, cause: str, said: str, wrong: Value, **more: Unpack[Facts]
) -> Iterator[Hypothesis]:
    """Yield a wrong norm everywhere, then of the kind at hand alone."""
    yield Hypothesis(cause, said, tuple(Mutation(tap, wrong) for tap in NORMS), **more)
    yield Hypothesis(
        cause, f"{said} in {evidence.short}", (Mutation(evidence.short, wrong),), **more
    )


def at_tap(
    evidence: Evidence, cause: str, said: str, wrong: Value, **more: Unpack[Facts]
) -> Hypothesis:
    """Return a hypothesis that changes the tap at hand alone."""
    return Hypothesis(cause, said, (Mutation(evidence.short, wrong),), **more)


def replace_weight(name: str, change: Callable[[Callable[[str], Tensor]], Tensor]) -> Mutation:
    """Return a change of one weight, given a way to read any."""

    def weight(asked: str, read: Callable[[str], Tensor]) -> Tensor | None:
        return change(read) if asked == name else None

    return Mutation(weight=weight)


def map_weight(name: str, change: Callable[[Tensor], Tensor]) -> Mutation:
    """Return a change of one weight that depends on itself alone."""
    return replace_weight(name, lambda read: change(read(name)))


def linear_case(evidence: Evidence) -> tuple[np.ndarray, np.ndarray, str]:
    """Return input [tokens in], output [tokens out] and weight's name of the product at hand."""
    x, y = evidence.real(LINEAR_INPUTS[evidence.short]), evidence.real(evidence.short)
    name = weight_name(evidence.short, evidence.layer, evidence.config)
    return x.reshape(len(x), -1), y.reshape(len(y), -1), name


def true_output(evidence: Evidence) -> np.ndarray:
    """Return what the reference gives at the tap, real tokens by features."""
    value = np.asarray(evidence.truth[evidence.short], np.float64)[evidence.valid]
    return value.reshape(len(value), -1)


def group_heads(site: MutationSite, name: str, heads: Tensor) -> Tensor:
    """Return keys or values of the kv head that each query head reads [B N S H]."""
    return site.seen[name][:, :, heads].transpose(1, 2)


def products(site: MutationSite, heads: Tensor | None = None) -> Tensor:
    """Return queries times keys [B N T S], without scale."""
    chosen = site.reference.kv_head_of_query() if heads is None else heads
    q = site.seen["q_rope"].to(site.reference.wide).transpose(1, 2)
    return q @ group_heads(site, "keys", chosen).to(site.reference.wide).transpose(2, 3)


def softmax_over(scores: Tensor, visible: Tensor) -> Tensor:
    """Return weights over what is visible; nothing where nothing is."""
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return weights.masked_fill(~visible.any(-1, keepdim=True), 0)
