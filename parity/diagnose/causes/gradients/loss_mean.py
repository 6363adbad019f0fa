"""The loss is divided by something else than the number of its terms."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.gradients.losses import Loss, losses_of, wrong_losses
from parity.diagnose.evidence import Evidence
from parity.inputs import Inputs
from parity.subjects.torch_reference.loss import successors

CAUSE = Cause(
    id="loss-mean",
    title="the loss is not the mean of its terms",
    what="The terms' sum is divided by another number than theirs, or means are averaged.",
    why=(
        "A mean over all positions counts pads that add nothing; a mean of each row's or each "
        "micro-batch's mean gives tokens of short rows more weight than those of long ones."
    ),
    sources=("transformers#34191",),
    taps=("loss",),
    remedy="Add the terms of the whole batch, then divide once, by how many they are.",
    rank=1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose what the loss's value tells."""
    yield from wrong_losses(e, CAUSE.id, CANDIDATES, "the mean of all terms")


def _sum(logits: Tensor, inputs: Inputs) -> Tensor:
    return losses_of(logits, successors(inputs)).sum()


def _over_all(logits: Tensor, inputs: Inputs) -> Tensor:
    return _sum(logits, inputs) / inputs.tokens.size


def _over_real(logits: Tensor, inputs: Inputs) -> Tensor:
    return _sum(logits, inputs) / int(inputs.valid.sum())


def _of_rows(logits: Tensor, inputs: Inputs) -> Tensor:
    pairs = successors(inputs)
    losses, rows = losses_of(logits, pairs), torch.tensor([b for b, _, _ in pairs])
    return torch.stack([losses[rows == b].mean() for b in rows.unique()]).mean()


CANDIDATES: dict[str, Loss] = {
    "sum of the terms": _sum,
    "divided by all positions, pads included": _over_all,
    "divided by all real tokens": _over_real,
    "mean of the rows' means": _of_rows,
}
