"""A tied head is not the embedding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from parity.causes.base import Cause, Evidence, Hypothesis
from parity.causes.operators import linear_case, one
from parity.causes.wrong import Site

CAUSE = Cause(
    id="head-untied",
    title="a tied head is not the embedding",
    what=(
        "The configuration ties the head to the embedding, and the subject's logits come from "
        "another matrix."
    ),
    why=(
        "The head is a tensor of its own, left random, stale or zero, because the checkpoint "
        "holds none."
    ),
    sources=(
        "tinygrad#13796",
        "transformers#43429",
        "levanter#777",
    ),
    taps=("logits",),
    remedy="Use the embedding for the head when tie_word_embeddings is true.",
    rank=7,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose a head of zeros, else one that the logits tell, if there are tokens enough."""
    if not e.config.tie_word_embeddings:
        return
    x, y, _ = linear_case(e)
    facts = {"effective": "a head of its own", "configured": "the embedding"}
    if len(x) >= x.shape[1] or not y.any():
        head = torch.from_numpy(np.linalg.lstsq(x, y, rcond=None)[0].T.copy())

        def other(site: Site) -> Tensor:
            return site.seen["norm"].double() @ head.T

        said = "a head of its own" if y.any() else "a head of zeros"
        yield one(e, "head-untied", said, other, **facts)
