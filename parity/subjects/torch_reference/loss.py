"""The loss that a training step differentiates."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from parity.inputs import Inputs


def next_token_loss(logits: Tensor, inputs: Inputs) -> Tensor:
    """Return the mean cross-entropy of every real token's successor in its document.

    Written pair by pair, apart from `jaxllama.loss`: a document is walked along its real tokens.

    Args:
        logits: [B T V].
        inputs: the scenario.
    """
    pairs = successors(inputs)
    batch, column, target = (torch.tensor(values) for values in zip(*pairs, strict=True))
    chosen = logits[batch, column]
    return (chosen.logsumexp(-1) - chosen[torch.arange(len(pairs)), target]).mean()


def successors(inputs: Inputs) -> list[tuple[int, int, int]]:
    """Return (row, column, id of the next real token) for each token that has a successor."""
    pairs = []
    for b, valid in enumerate(inputs.valid):
        real = np.flatnonzero(valid).tolist()
        for here, there in pairwise(real):
            if inputs.segments is None or inputs.segments[b, here] == inputs.segments[b, there]:
                pairs.append((b, here, int(inputs.tokens[b, there])))
    return pairs
