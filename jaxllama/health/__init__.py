"""Figures of attention and states for a training step, of what `Taps` has recorded."""

from jaxllama.health.figures import (
    HealthFigures,
    entropy,
    health_figures,
    largest_logit,
    rank_residual,
)

__all__ = ["HealthFigures", "entropy", "health_figures", "largest_logit", "rank_residual"]
