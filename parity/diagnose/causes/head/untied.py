"""A tied head is not the embedding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap
from parity.inputs import Inputs

# A head of more columns than half of these is not solved: that would take a subject minutes.
MOST_TOKENS = 4096

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
    sources=("tinygrad#13796", "transformers#43429", "levanter#777"),
    taps=("logits",),
    remedy="Use the embedding for the head when tie_word_embeddings is true.",
    rank=7,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose a head of zeros, else the one that the subject's logits on other inputs tell.

    That the head, solved there, gives the logits here is no matter of course: it was fitted to
    other tokens.
    """
    if not e.config.tie_word_embeddings:
        return
    said, taps = "a head of zeros", dict(e.subject)
    if np.any(e.real("logits")):
        asked = more_tokens(e)
        if e.ask is None or asked is None:
            return
        said, taps = "a head of its own", dict(e.ask(asked))
    x, y = (np.asarray(taps[name], np.float64) for name in ("norm", "logits"))
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    head = torch.from_numpy(np.linalg.lstsq(x, y, rcond=None)[0].T.copy())

    def other(site: MutationSite) -> Tensor:
        return site.seen["norm"].double() @ head.T

    facts: Facts = {"effective": "a head of its own", "configured": "the embedding"}
    yield at_tap(e, "head-untied", said, other, **facts)


def more_tokens(e: Evidence) -> Inputs | None:
    """Return inputs of twice as many tokens as the head has columns; None if those are too many."""
    D, T = e.config.hidden_size, min(e.inputs.tokens.shape[1], 32)
    if 2 * D > MOST_TOKENS:
        return None
    B = -(-2 * D // T)
    tokens = np.random.default_rng(D).integers(e.config.vocab_size, size=(B, T), dtype=np.int32)
    return Inputs(
        name="causal",
        tokens=tokens,
        positions=np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
        valid=np.ones((B, T), bool),
        mask=np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T)),
    )
