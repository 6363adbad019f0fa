"""The loss is a mean over other tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.gradients.losses import Loss, Pair, losses_of, wrong_losses
from parity.diagnose.evidence import Evidence
from parity.inputs import Inputs
from parity.subjects.torch_reference.loss import successors

CAUSE = Cause(
    id="loss-tokens",
    title="the loss is over other tokens",
    what="Cross-entropy is taken at tokens, or of targets, that it should leave out or has missed.",
    why=(
        "Labels are shifted once in the data and once in the model, or never; pads are not masked "
        "out of them; the last token of a packed document is made to predict the next document."
    ),
    sources=("transformers#34191", "axolotl#3796"),
    taps=("loss",),
    remedy=(
        "Let each real token predict the next real token of its own document, and leave all others "
        "out of the sum and of what it is divided by."
    ),
    rank=1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose what the loss's value tells."""
    candidates: dict[str, Loss] = {
        said: partial(_mean, pairs) for said, pairs in CANDIDATES.items()
    }
    yield from wrong_losses(e, CAUSE.id, candidates, "each real token's successor")


def _mean(pairs: Callable[[Inputs], Sequence[Pair]], logits: Tensor, inputs: Inputs) -> Tensor:
    return losses_of(logits, pairs(inputs)).mean()


def _with_pads(inputs: Inputs) -> Inputs:
    return replace(inputs, valid=np.ones_like(inputs.valid))


def _following_column(inputs: Inputs) -> list[Pair]:
    """Let each real token predict what stands in the next column, pad or not."""
    b, t = np.nonzero(inputs.valid[:, :-1])
    return list(zip(b.tolist(), t.tolist(), inputs.tokens[b, t + 1].tolist(), strict=True))


def _unshifted(inputs: Inputs) -> list[Pair]:
    b, t = np.nonzero(inputs.valid)
    return list(zip(b.tolist(), t.tolist(), inputs.tokens[b, t].tolist(), strict=True))


def _shifted_twice(inputs: Inputs) -> list[Pair]:
    """Take each column's target, where it has one, for that of the column before."""
    return [(b, t - 1, target) for b, t, target in successors(inputs) if t]


def _from_pads(inputs: Inputs) -> list[Pair]:
    """Leave out columns whose target is a pad, but not those that are pads themselves."""
    b, t = np.nonzero(inputs.valid[:, 1:])
    return list(zip(b.tolist(), t.tolist(), inputs.tokens[b, t + 1].tolist(), strict=True))


CANDIDATES: dict[str, Callable[[Inputs], Sequence[Pair]]] = {
    "pads counted": lambda inputs: successors(_with_pads(inputs)),
    "documents' ends counted": lambda inputs: successors(replace(inputs, segments=None)),
    "pads and documents' ends counted": lambda inputs: successors(
        replace(_with_pads(inputs), segments=None)
    ),
    "pads as targets": _following_column,
    "pads hidden as targets alone": _from_pads,
    "targets not shifted": _unshifted,
    "targets shifted twice": _shifted_twice,
}
