"""K and v have as many heads as q."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite
from parity.diagnose.operators import group_heads, products

CAUSE = Cause(
    id="kv-head-count",
    title="k and v have as many heads as q",
    what="The projections give one key and value per query head, each repeated.",
    why=(
        "num_key_value_heads is ignored, or heads are repeated on projection, which also "
        "multiplies the cache."
    ),
    sources=("transformers#29557",),
    taps=("k_proj", "v_proj"),
    remedy="Project to num_key_value_heads heads, and repeat them in attention at most.",
    rank=1,
    reshapes=True,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose that each kv head is repeated on projection."""
    count, kv = e.config.num_attention_heads, e.config.num_key_value_heads
    if e.subject[e.short].shape[2] != count:
        return
    heads = torch.arange(count)

    def repeated(site: MutationSite) -> Tensor:
        return site.value.repeat_interleave(count // kv, dim=2)

    def scores(site: MutationSite) -> Tensor:
        return products(site, heads) * site.reference.scale()

    def context(site: MutationSite) -> Tensor:
        values = group_heads(site, "values", heads)
        return (site.seen["attn_probs"].to(values.dtype) @ values).transpose(1, 2)

    changes = (
        Mutation("k_proj", repeated),
        Mutation("v_proj", repeated),
        Mutation("attn_scores", scores),
        Mutation("attn_context", context),
    )
    yield Hypothesis(
        "kv-head-count",
        f"{count} kv heads",
        changes,
        effective=f"{count} kv heads",
        configured=f"{kv}",
    )
