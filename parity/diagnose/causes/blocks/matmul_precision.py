"""Products take their operands in fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite
from parity.diagnose.operators import LINEAR_INPUTS, LINEARS, group_heads, weight_name
from parity.diagnose.rounding import narrow, narrower

CAUSE = Cause(
    id="matmul-precision",
    title="products take their operands in fewer bits",
    what=(
        "Both operands of a matrix product are rounded to TF32 or bfloat16 before they are "
        "multiplied, whatever their dtype says."
    ),
    why=(
        "It is the default of TPUs (bfloat16) and of recent GPUs (TF32): float32 in, float32 out, "
        "and three decimal digits in between."
    ),
    sources=("jax#7010", "jax#9973", "jax#18934"),
    taps=(*LINEARS, "attn_scores", "attn_context"),
    remedy=(
        'Ask for full precision: `jax.default_matmul_precision("highest")`, or `precision=` on '
        "the product; in PyTorch `torch.backends.cuda.matmul.allow_tf32 = False`."
    ),
    rank=6,
    rounding=True,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose each dtype: for every product, for those with weights, for this one."""
    for dtype in narrower(e.lane):
        facts: Facts = {"effective": dtype, "configured": e.lane}
        weighted = [changed(tap, linear, dtype) for tap in LINEARS]
        attention = [changed("attn_scores", scores, dtype), changed("attn_context", mixed, dtype)]
        choices = {
            f"every product in {dtype}": [*weighted, *attention],
            f"products with weights in {dtype}": [c for c in weighted if c.tap != "logits"],
            f"products of attention in {dtype}": attention,
            f"{e.short} in {dtype}": [c for c in (*weighted, *attention) if c.tap == e.short],
        }
        for said, changes in choices.items():
            if any(change.tap == e.short for change in changes):
                yield Hypothesis("matmul-precision", said, tuple(changes), **facts)


def changed(tap: str, product: Callable[[MutationSite, str], Tensor], dtype: str) -> Mutation:
    """Return the change of one tap's product."""
    return Mutation(tap, lambda site: product(site, dtype), rounds=True)


def multiplied(site: MutationSite, a: Tensor, b: Tensor, dtype: str) -> Tensor:
    """Multiply operands [.. m k] and [.. k n], rounded; float32 itself also sums in float32."""
    a = narrow(site, a, dtype)
    b = narrow(site, b.transpose(-1, -2), dtype).transpose(-1, -2)
    if dtype == "float32":
        return site.reference.matmul(a.float(), b.float())
    return site.reference.matmul(a, b)


def linear(site: MutationSite, dtype: str) -> Tensor:
    """Return the product with a weight."""
    x = site.seen[LINEAR_INPUTS[site.tap]].flatten(2)
    name = weight_name(site.tap, site.layer, site.reference.config)
    weight = site.reference.weight(name).to(site.reference.compute).to(x.dtype)
    return multiplied(site, x, weight.T, dtype).reshape(site.value.shape)


def scores(site: MutationSite, dtype: str) -> Tensor:
    """Return queries times keys."""
    q = site.seen["q_rope"].to(site.reference.wide).transpose(1, 2)
    k = group_heads(site, "keys", site.reference.kv_head_of_query()).to(site.reference.wide)
    return multiplied(site, q, k.transpose(2, 3), dtype) * site.reference.scale()


def mixed(site: MutationSite, dtype: str) -> Tensor:
    """Return weights times values [B T N H]."""
    v = group_heads(site, "values", site.reference.kv_head_of_query())
    probs = site.seen["attn_probs"].to(v.dtype)
    return torch.as_tensor(multiplied(site, probs, v, dtype)).transpose(1, 2)
