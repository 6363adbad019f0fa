"""How good a model is whose numbers are rounded on purpose: no verdict of equality, only figures.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from parity.comparison.reference import ReferenceTap
from parity.comparison.tap import compare_tap


@dataclass(frozen=True)
class LayerLoss:
    """What a layer's output has lost: norm of the difference over norm of the reference, by token.

    Attributes:
        layer: from 0.
        free, free_max: mean and largest over all tokens, after all the layers before.
        isolated, isolated_max: likewise, the layer being given the reference's input.
    """

    layer: int
    free: float
    free_max: float
    isolated: float
    isolated_max: float


@dataclass(frozen=True)
class QualityFigures:
    """What a model has lost at one dtype.

    Attributes:
        lane: the dtype.
        tokens: how many next-token distributions were compared.
        kl_mean, kl_max: Kullback-Leibler divergence from the reference's distribution, in nats.
        top1_agreement: share of tokens whose likeliest successor is the reference's.
        foretold: how many tokens have a successor, of which the perplexities are.
        perplexity, reference_perplexity: of the model and of the reference.
        layers: each layer's own.
    """

    lane: str
    tokens: int
    kl_mean: float
    kl_max: float
    top1_agreement: float
    foretold: int
    perplexity: float
    reference_perplexity: float
    layers: tuple[LayerLoss, ...]


@dataclass(frozen=True)
class QualityReport:
    """What was rounded, and what that cost.

    Attributes:
        quant: of the weights, as `--quant` has it; None if they were not.
        cache_dtype: of the cache that the tokens were run through; None without one.
        weights_bytes: of all parameters as they were held.
        bf16_bytes: of all of them in bfloat16.
        lanes: figures of each dtype.
    """

    quant: str | None
    cache_dtype: str | None
    weights_bytes: int
    bf16_bytes: int
    lanes: tuple[QualityFigures, ...]


@dataclass
class QualityMeter:
    """Gathers the figures of one dtype, a stage of a pass at a time.

    Args:
        lane: the dtype.
    """

    lane: str
    _kl: list[np.ndarray] = field(default_factory=list)
    _agree: list[np.ndarray] = field(default_factory=list)
    _losses: list[np.ndarray] = field(default_factory=list)
    _layers: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = field(default_factory=dict)

    def add_layer(
        self, layer: int, reference: ReferenceTap, free: np.ndarray, isolated: np.ndarray
    ) -> None:
        """Take a layer's output, as run on and as of the reference's input."""
        gathered = self._layers.setdefault(layer, ([], []))
        for into, value in zip(gathered, (free, isolated), strict=True):
            found = compare_tap(reference, value, locate=False)
            into.append(found.relative[found.live])

    def add_logits(
        self,
        reference: ReferenceTap,
        logits: np.ndarray,
        successors: Sequence[tuple[int, int, int]],
    ) -> np.ndarray:
        """Take logits, and return the losses [successors, 2] of the reference and of the model.

        Args:
            reference: the reference's [B T V].
            logits: the model's.
            successors: (row, column, id of the next token) of each token that has one.
        """
        live = reference.valid
        found = compare_tap(reference, logits, locate=False)
        # Logits that are not finite foretell nothing, whatever their largest is.
        lost = ~np.isfinite(logits).all(axis=-1)
        self._kl.append(np.where(lost, np.inf, found.tokens["kl"])[live])
        self._agree.append(((found.tokens["margin"] < 0) & ~lost)[live])
        pairs = [(reference.array[b, t], logits[b, t], target) for b, t, target in successors]
        both = [
            (token_loss(ours, target), token_loss(theirs, target)) for ours, theirs, target in pairs
        ]
        losses = np.array(both).reshape(-1, 2)
        self._losses.append(losses)
        return losses

    def figures(self) -> QualityFigures:
        """Return the figures of all that was taken."""
        kl, agree = np.concatenate(self._kl), np.concatenate(self._agree)
        losses = np.concatenate(self._losses)
        reference, model = losses.mean(axis=0) if len(losses) else (math.nan, math.nan)
        return QualityFigures(
            lane=self.lane,
            tokens=len(kl),
            kl_mean=float(kl.mean()),
            kl_max=float(kl.max()),
            top1_agreement=float(agree.mean()),
            foretold=len(losses),
            perplexity=_perplexity(model),
            reference_perplexity=_perplexity(reference),
            layers=tuple(
                LayerLoss(layer, *_mean_and_max(free), *_mean_and_max(isolated))
                for layer, (free, isolated) in sorted(self._layers.items())
            ),
        )


def _mean_and_max(parts: Sequence[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate(parts)
    return float(values.mean()), float(values.max())


def token_loss(logits: np.ndarray, target: int) -> float:
    """Return the cross-entropy of one token's logits [V], in nats; infinite of what is NaN."""
    wide = logits.astype(np.float64)
    if not np.isfinite(wide).all():
        return math.inf
    wide -= wide.max()
    return float(np.log(np.exp(wide).sum()) - wide[target])


def _perplexity(loss: float) -> float:
    """Return e to a mean loss; infinite beyond what a float holds."""
    return float(np.exp(loss)) if not loss > 700 else math.inf
