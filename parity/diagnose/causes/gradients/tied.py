"""A tied embedding gets the gradient of one of its two uses."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite, stop_gradient

CAUSE = Cause(
    id="gradient-tied",
    title="the tied embedding's gradient lacks one of its uses",
    what="The shared weight's gradient is that of the head alone, or of the embedding alone.",
    why=(
        "The head is a copy, or is transposed outside of what is differentiated; then only one "
        "of the two uses is seen."
    ),
    sources=(),
    taps=("grad.model.embed_tokens.weight",),
    remedy="Let both uses read the same parameter, and add up both gradients.",
    rank=1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose that either use is not seen."""
    if not e.config.tie_word_embeddings:
        return
    right = "the sum of both"
    head, table = (
        Mutation("logits", constant_head),
        Mutation("embed", lambda s: stop_gradient(s.value)),
    )
    yield Hypothesis(CAUSE.id, "the head's part is missing", (head,), "the embedding's", right)
    yield Hypothesis(CAUSE.id, "the embedding's part is missing", (table,), "the head's", right)


def constant_head(site: MutationSite) -> Tensor:
    """Return the logits of a head that is no parameter."""
    r, x = site.reference, site.seen["norm"]
    weight = r.weight("model.embed_tokens.weight").detach().to(r.compute).to(r.wide)
    return r.matmul(x.to(r.wide), weight.T)
