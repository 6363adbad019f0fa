"""How well models foretell texts: the loss of every token, added up by example.

Shapes: B batch, T tokens, V vocabulary, n examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxllama.masks import Mask
from jaxllama.model import Llama
from jaxllama.sharding.hosts import host_array
from jaxllama.taps import untapped
from parity.comparison.quality import QualityFigures, QualityMeter, token_loss
from parity.comparison.reference import ReferenceTap
from parity.inputs import Inputs
from parity.quality.layouts import ForetoldBatch
from parity.subjects.base import Subject
from parity.subjects.jaxllama.run import mask_spec, tokens_of
from parity.subjects.jaxllama.subject import whole_pass

# A batch's logits [B T V].
LogitsOf = Callable[[Inputs], np.ndarray]


def logits_of_model(model: Llama, mask: Mask | None = None) -> LogitsOf:
    """Return what runs a model as users do.

    Args:
        model: the model.
        mask: what its queries see; what a batch asks for if None.
    """

    def run(inputs: Inputs) -> np.ndarray:
        tokens = tokens_of(inputs, slice(None))
        spec = mask_spec(inputs) if mask is None else mask
        bound = spec.bind(tokens, tokens, empty_row="zero")
        ids = jax.device_put(inputs.tokens)
        return host_array(whole_pass(model, ids, bound, tokens.positions, untapped))

    return run


def logits_of_subject(subject: Subject, layers: int) -> LogitsOf:
    """Return what runs any implementation, the PyTorch reference among them, stage by stage."""

    def run(inputs: Inputs) -> np.ndarray:
        begun, shown = subject.start(inputs), {}
        for _ in range(layers + 2):
            shown = begun.step()
        return shown["logits"]

    return run


@dataclass(frozen=True)
class ForetoldTexts:
    """What models have made of the same texts.

    Attributes:
        losses: summed over each example's tokens, in nats [models n].
        counts: of these tokens [n].
        figures: how far the second model's distributions are from the first's; None of one model.
    """

    losses: np.ndarray
    counts: np.ndarray
    figures: QualityFigures | None


def foretell(
    models: Sequence[LogitsOf],
    batches: Sequence[ForetoldBatch],
    examples: int,
    *,
    lane: str,
    refuse: Callable[[int], Exception],
    progress: Callable[[], None] = lambda: None,
) -> ForetoldTexts:
    """Run one model or two over the same batches.

    Args:
        models: what runs them, the one before first.
        batches: the texts.
        examples: n.
        lane: their dtype.
        refuse: returns the error of logits that are not finite, given the model's index.
        progress: called after each batch.
    """
    losses, counts = np.zeros((len(models), examples)), np.zeros(examples)
    meter = QualityMeter(lane)
    for batch in batches:
        rows, columns, _ = np.array(batch.successors).T
        counted = np.zeros(batch.inputs.tokens.shape, bool)
        counted[rows, columns] = True
        shown = [run(batch.inputs) for run in models]
        for number, logits in enumerate(shown):
            if not np.isfinite(logits[counted]).all():
                raise refuse(number)
        if len(shown) == 2:
            reference = ReferenceTap("logits", shown[0], counted, batch.inputs.mask)
            found = meter.add_logits(reference, shown[1], batch.successors).T
        else:
            (one,) = shown
            found = np.array([[token_loss(one[b, t], target) for b, t, target in batch.successors]])
        for number, values in enumerate(found):
            np.add.at(losses[number], batch.owners, values)
        np.add.at(counts, batch.owners, 1)
        progress()
    return ForetoldTexts(losses, counts, meter.figures() if len(models) == 2 else None)
