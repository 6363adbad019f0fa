"""Weights that nobody has trained."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.health.figures import ModelFigures
from parity.health.rule import HealthFinding, HealthRule

# SmolLM2's query and key weights: 1.8 and more; those of random models 0.96 to 1.02.
LIMIT = 1.2

RULE = HealthRule(
    id="random-weights",
    rank=13,
    severity="information",
    title="the weights look random",
    checks="The largest singular value of query and key weights, in the first, the middle and the "
    "last layer, over the largest that independent random numbers of the same variance have "
    "(Marchenko and Pastur 1967): below 1.2 in all of them.",
    why="What is measured here of attention is then of no model that anybody uses. A checkpoint "
    "that ought to be a trained one was perhaps never loaded.",
    not_this="The text is not asked: a broken model foretells it badly with weights that were "
    "trained. How well it is foretold is said beside.",
    remedy="If it ought to be trained, check that its weights were read: `jaxllama info`, and "
    "`jaxllama verify` against its source.",
    source="Martin and Mahoney 2021 (JMLR 22:165): spectra of trained weights leave the random "
    "bulk.",
    basis="heuristic",
)


def find(model: ModelFigures) -> Iterator[HealthFinding]:
    """Yield it, where it is so."""
    if not model.spectra or not max(model.spectra.values()) < LIMIT:
        return
    largest = max(model.spectra.values())
    foretold = ""
    if np.isfinite(model.loss):
        foretold = f"; the text costs {model.loss:.3g} nats a token, chance {model.chance:.3g}"
    yield RULE.finding(
        f"the weights look random: no singular value of queries and keys is above {largest:.3g} "
        f"times what random numbers have{foretold}",
        value=largest,
        threshold=LIMIT,
    )
