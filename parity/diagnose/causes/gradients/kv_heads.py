"""Gradients of shared keys and values are not summed over the query heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.causes.gradients.common import gradient_taps, multiple
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite, with_gradient

CAUSE = Cause(
    id="gradient-kv-heads",
    title="the gradients of a kv head's query heads are not summed",
    what=(
        "Keys or values get a mean, or one query head's gradient, in place of the sum over "
        "those that share them."
    ),
    why=(
        "The backward pass of a grouped kernel has to add up what the forward pass read several "
        "times; a mean looks right in shape and in sign."
    ),
    sources=(),
    taps=gradient_taps("k_rope", "v_proj"),
    remedy="Sum over the query heads of each group.",
    rank=3,
)

# How near to a mean's the gradient must be, relative, to be taken for one.
CLOSE = 1e-2


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose each way not to sum, of keys and values and of those at hand."""
    keys = e.short.endswith("k_rope")
    found, group = multiple(e), e.config.num_attention_heads // e.config.num_key_value_heads
    for said, reduce in REDUCTIONS.items():
        mean = said == "mean" and found is not None and abs(found.factor * group - 1) < CLOSE
        left = found.rest if found is not None and mean else None
        facts: Facts = {"effective": said, "configured": "sum", "left": left}
        k, v = (
            Mutation("attn_scores", scores_with(reduce)),
            Mutation("attn_context", context_with(reduce)),
        )
        if keys:  # which the backward pass comes to first
            yield Hypothesis(CAUSE.id, f"{said} for keys and values", (k, v), **facts)
        here = f"{said} for {'keys' if keys else 'values'} alone"
        yield Hypothesis(CAUSE.id, here, (k if keys else v,), **facts)


def _shared(site: MutationSite, held: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what each query head reads [B S N H], differentiated with `reduce`."""
    heads = site.reference.kv_head_of_query()

    def backward(g: Tensor) -> Tensor:  # query heads of a group are neighbours
        return reduce(g.unflatten(2, (held.shape[2], -1)))

    return with_gradient(held, lambda x: x[:, :, heads], backward)


def scores_with(reduce: Callable[[Tensor], Tensor]) -> Callable[[MutationSite], Tensor]:
    """Return the scores, the keys' gradient [B S K G H] reduced to [B S K H] so."""
    return lambda site: site.reference.scores(
        site.seen["q_rope"], _shared(site, site.seen["keys"], reduce)
    )


def context_with(reduce: Callable[[Tensor], Tensor]) -> Callable[[MutationSite], Tensor]:
    """Return the weighted values, the values' gradient reduced so."""

    def value(site: MutationSite) -> Tensor:
        v = _shared(site, site.seen["values"], reduce)
        probs = site.seen["attn_probs"].to(v.dtype)
        return site.reference.matmul(probs, v.transpose(1, 2)).transpose(1, 2)

    return value


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda g: g.mean(3),
    "the first head's": lambda g: g[:, :, :, 0],
    "the last head's": lambda g: g[:, :, :, -1],
}
