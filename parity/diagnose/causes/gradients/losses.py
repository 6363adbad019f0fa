"""What a loss may be the mean of, and how causes change it.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation
from parity.inputs import Inputs
from parity.subjects.torch.arrays import to_torch

# (row, column, id to be predicted there).
Pair = tuple[int, int, int]
Loss = Callable[[Tensor, Inputs], Tensor]

# A candidate must take this much of the loss's difference away to be tried.
CLOSE = 0.05


def losses_of(logits: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """Return the cross-entropy of each pair, of logits [B T V]."""
    batch, column, target = (torch.tensor(values) for values in zip(*pairs, strict=True))
    chosen = logits[batch, column]
    return chosen.logsumexp(-1) - chosen[torch.arange(len(pairs)), target]


def wrong_losses(
    evidence: Evidence, cause: str, candidates: Mapping[str, Loss], configured: str
) -> Iterator[Hypothesis]:
    """Yield the candidates that make the subject's own logits into the subject's loss."""
    if evidence.ask is None:
        return
    inputs = evidence.inputs
    shown = evidence.ask(inputs)
    logits = to_torch(np.asarray(shown["logits"], np.float64))
    # What pads see is every implementation's own choice, and counts where a loss counts pads.
    mask = np.where(inputs.valid[:, :, None], inputs.mask, shown.get("mask", inputs.mask))
    given, right = (float(taps["loss"]) for taps in (evidence.subject, evidence.truth))
    for said, loss in candidates.items():
        away = abs(float(loss(logits, inputs)) - given)
        if away <= CLOSE * abs(right - given):
            left = away / abs(right)
            change = Mutation(loss=loss)
            yield Hypothesis(cause, said, (change,), said, configured, mask=mask, left=left)
