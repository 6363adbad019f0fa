"""Values are rotated too."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

CAUSE = Cause(
    id="rope-on-values",
    title="values are rotated too",
    what=(
        "The rotation of keys is applied to values, so that what is attended to depends on "
        "where it stands."
    ),
    why="Keys and values are handled as one tensor, or a loop covers q, k and v.",
    sources=("maxtext#4764",),
    taps=("attn_context",),
    remedy="Rotate queries and keys alone.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose rotated values, where no cache holds earlier ones."""
    if e.chunks is None:
        facts: Facts = {"effective": "v rotated", "configured": "v as projected"}
        yield at_tap(e, "rope-on-values", "values rotated", rotated, **facts)


def rotated(site: MutationSite) -> Tensor:
    """Weigh rotated values."""
    values = site.reference.rotate(site.seen["values"], site.cos, site.sin)
    spread = values[:, :, site.reference.kv_head_of_query()].transpose(1, 2)
    return (site.seen["attn_probs"].to(values.dtype) @ spread).transpose(1, 2)
