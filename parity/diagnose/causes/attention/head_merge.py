"""Heads are merged out of order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

CAUSE = Cause(
    id="head-merge",
    title="heads are merged out of order",
    what="The output projection gets the heads' features in another order.",
    why=(
        "A reshape stands in for a transpose: [B T H N] for [B T N H], or [B N T H] is "
        "flattened as it lies."
    ),
    sources=(),
    taps=("o_proj",),
    remedy="Transpose to [B T N H] before merging.",
    rank=4,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose feature by feature, and heads moved around."""
    for said, order in orders(e.config.num_attention_heads).items():

        def merged(site: MutationSite, order: Order = order) -> Tensor:
            context = order(site.seen["attn_context"])
            name = f"model.layers.{site.layer}.self_attn.o_proj"
            return site.reference.linear(context, name)

        facts: Facts = {"effective": said, "configured": "heads in order"}
        yield at_tap(e, "head-merge", said, merged, **facts)


Order = Callable[[Tensor], Tensor]


def orders(heads: int) -> dict[str, Order]:
    """Return wrong ways to merge [B T N H]."""
    moved = {
        f"heads moved by {by}": lambda x, by=by: x.roll(by, 2).flatten(2) for by in range(1, heads)
    }
    return {
        "features before heads": lambda x: x.transpose(2, 3).flatten(2),
        "heads before tokens": lambda x: x.transpose(1, 2).reshape(*x.shape[:2], -1),
        **moved,
    }
