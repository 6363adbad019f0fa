"""One model's figures over prepared texts, and what rules find in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxllama.checkpoint import Checkpoint
from jaxllama.checkpoint.checks import check_finite
from jaxllama.errors import InputError
from parity.health.figures import LayerSummary, ModelFigures, summarise_layer
from parity.health.measure import (
    Measured,
    NotFinite,
    Watcher,
    can_differentiate,
    measure,
    measure_gradients,
)
from parity.health.metrics.gradients import GradientFigures
from parity.health.prepare import PreparedTexts
from parity.health.rule import HealthFinding, find_all
from parity.health.weights import weight_spectra
from parity.options import Progress, in_wider
from parity.subjects.base import Subject


@dataclass(frozen=True)
class ModelPass:
    """One model, measured.

    Attributes:
        layers: figures of each over all rows; `gradients` and of how many tokens likewise.
        measured: figures of each row.
        findings: of all rules.
        loss, spectra: see `parity.health.figures.ModelFigures`.
        notes: remarks.
    """

    layers: list[LayerSummary]
    gradients: list[GradientFigures] | None
    gradient_tokens: int
    measured: Measured
    findings: list[HealthFinding]
    loss: float
    spectra: dict[str, float]
    notes: list[str]


def measure_model(
    subject: Subject,
    opened: Checkpoint,
    label: str,
    prepared: PreparedTexts,
    *,
    gradients: bool,
    watch: Watcher | None,
    progress: Progress | None,
    what: str,
) -> ModelPass:
    """Measure a subject.

    Args:
        subject: what runs.
        opened: the checkpoint that it is of.
        label: what to call that.
        prepared: the texts.
        gradients: whether they are taken, where the subject shows some.
        watch: told of all maps.
        progress: told how far it is.
        what: is done, for `progress`.

    Raises:
        JaxLlamaError: weights are no numbers, or the pass overflows.
    """
    config = opened.config
    layers, notes = config.num_hidden_layers, []
    # Beforehand: what no text of these reads, or only another subject, would pass unseen.
    check_finite(opened, label)
    try:
        measured = measure(
            subject,
            prepared.inputs,
            prepared.visible,
            layers,
            watch=watch,
            progress=progress,
            what=what,
        )
    except NotFinite as error:
        raise InputError(
            f"{error} in {subject.dtype}, though every weight of the checkpoint is"
            f"{in_wider(subject.dtype)}"
        ) from None
    of_gradients, counted = None, 0
    if gradients and can_differentiate(subject):
        heads = config.num_attention_heads, config.num_key_value_heads
        of_gradients, counted = measure_gradients(subject, prepared.inputs[0], layers, *heads)
    elif gradients:
        notes.append(f"{subject.name} shows no gradients")
    absent = sorted({"layers.attn_probs", "layers.attn_scores"} & set(subject.absent))
    if absent:
        notes.append(f"{subject.name} does not show {', '.join(absent)}")
    summaries = [summarise_layer([row[i] for row in measured.rows]) for i in range(layers)]
    losses = [loss for loss in measured.losses if np.isfinite(loss)]
    loss = float(np.mean(losses)) if losses else float("nan")
    spectra = weight_spectra(opened)
    figures = ModelFigures(
        layers=summaries,
        gradients=of_gradients,
        dtype=subject.dtype,
        tokens=max(prepared.lengths),
        spectra=spectra,
        loss=loss,
        chance=float(np.log(config.vocab_size)),
        token=prepared.token,
    )
    found = find_all(figures)
    return ModelPass(summaries, of_gradients, counted, measured, found, loss, spectra, notes)
