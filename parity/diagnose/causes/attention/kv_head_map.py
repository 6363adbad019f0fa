"""Query heads read the wrong kv heads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite
from parity.diagnose.operators import group_heads, products
from parity.diagnose.solve import head_map

CAUSE = Cause(
    id="kv-head-map",
    title="query heads read the wrong kv heads",
    what="Queries are grouped with kv heads in another way than head n with kv head n // G.",
    why=(
        "Keys and values are tiled where they ought to be repeated, or the number of kv heads "
        "is misread."
    ),
    sources=("axlearn#842", "jax-js#180", "onnx#7274", "transformers#29557"),
    taps=("attn_scores", "attn_context"),
    remedy="Repeat each kv head G times in a row (repeat_interleave), for keys and values alike.",
    rank=1,
)

EDITS = (
    NamedEdits(
        "{edit}", (Pattern("place", "kv_heads"),), "{edit}", "neighbours share one", searched=True
    ),
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the map that scores, or weighted values, tell."""
    heads, left = solved(e)
    groups = e.config.num_attention_heads // e.config.num_key_value_heads
    right = [n // groups for n in range(len(heads))]
    if left > 1e-2 or heads == right:
        return
    chosen = torch.tensor(heads)

    def scores(site: MutationSite) -> Tensor:
        return products(site, chosen) * site.reference.scale()

    def context(site: MutationSite) -> Tensor:
        values = group_heads(site, "values", chosen)
        return (site.seen["attn_probs"].to(values.dtype) @ values).transpose(1, 2)

    facts: Facts = {"effective": str(heads), "configured": str(right)}
    both = Mutation("attn_scores", scores), Mutation("attn_context", context)
    if e.short == "attn_scores":
        yield Hypothesis("kv-head-map", "kv heads of keys and values", both, **facts)
        yield Hypothesis("kv-head-map", "kv heads of keys", both[:1], **facts)
    else:
        yield Hypothesis("kv-head-map", "kv heads of values", both[1:], **facts)


def solved(e: Evidence) -> tuple[list[int], float]:
    """Return the kv head that each query head reads, and what that leaves."""
    short = "keys" if e.short == "attn_scores" else "values"
    held = np.asarray(e.subject[short], np.float64)
    if e.short == "attn_scores":
        q = np.asarray(e.subject["q_rope"], np.float64)
        made = np.einsum("btnh,bskh->nkbts", q, held) * e.reference.scale()
        cells = e.mask
        seen = np.asarray(e.subject["attn_scores"], np.float64).swapaxes(0, 1)
        return head_map(seen[:, cells], made[:, :, cells])
    probs = np.asarray(e.subject["attn_probs"], np.float64)
    made = np.einsum("bnts,bskh->nkbth", probs, held)
    seen = np.asarray(e.subject["attn_context"], np.float64).transpose(2, 0, 1, 3)
    return head_map(seen[:, e.valid], made[:, :, e.valid])
