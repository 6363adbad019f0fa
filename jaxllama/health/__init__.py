"""Figures of attention, states and gradients for a training step, of what `Taps` has recorded."""

from jaxllama.health.figures import (
    HealthFigures,
    entropy,
    health_figures,
    largest_logit,
    rank_residual,
)
from jaxllama.health.maps import MapFigures, map_figures, rollout
from jaxllama.health.states import GradientNorms, StreamFigures, gradient_norms, stream_figures

__all__ = [
    "GradientNorms",
    "HealthFigures",
    "MapFigures",
    "StreamFigures",
    "entropy",
    "gradient_norms",
    "health_figures",
    "largest_logit",
    "map_figures",
    "rank_residual",
    "rollout",
    "stream_figures",
]
