"""Token ids or vocabulary rows are shifted."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.operators import map_weight, weight_name

CAUSE = Cause(
    id="token-shift",
    title="token ids or vocabulary rows are shifted",
    what="Each token gets its neighbour's row of the embedding or of the head.",
    why=("Ids are counted from 1, or a special token was inserted at the start of the vocabulary."),
    sources=(),
    taps=("embed", "logits"),
    remedy=(
        "Use ids as the tokenizer gives them; compare the first rows of the tensor with the file's."
    ),
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose shifts by one, with and without wrapping around."""
    name = weight_name(e.short, e.layer, e.config)
    for by in (1, -1):
        facts: Facts = {"effective": f"row {-by:+d}", "configured": "row of the id"}
        said = f"rows of {name} shifted by {by:+d}"
        rolled = map_weight(name, lambda w, by=by: w.roll(by, 0))  # type: ignore[misc]
        yield Hypothesis("token-shift", said, (rolled,), **facts)
        cut = map_weight(name, lambda w, by=by: clamped(w, by))  # type: ignore[misc]
        yield Hypothesis("token-shift", f"{said}, cut off", (cut,), **facts)


def clamped(w: Tensor, by: int) -> Tensor:
    """Shift rows, and repeat the one at the end."""
    rows = torch.arange(len(w)) - by
    return w[rows.clamp(0, len(w) - 1)]
