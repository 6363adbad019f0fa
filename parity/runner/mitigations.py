"""What `--mode step --mitigation` judges beside a plain step, and what both sides are handed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jaxllama.config import LlamaConfig
from jaxllama.train.config import MitigationSettings
from parity.subjects.torch_reference.mitigated import Kept

# Steps made before the one that is judged: with none, a key would not show that it forgets them.
STEPS_BEFORE = 3
SEED = 5
# Every one strong enough to move any model's gradients. Of QK-clip's tau see `with_tau`.
_SETTINGS: dict[str, dict[str, Any]] = {
    "attention_dropout": {"attention_dropout": 0.2, "seed": SEED},
    "residual_dropout": {"residual_dropout": 0.1, "seed": SEED},
    "qk_norm": {"qk_norm": True},
    "qk_clip": {"qk_clip": 1.0},
    "score_cap": {"score_cap": 3.0},
    "logit_cap": {"logit_cap": 5.0},
    "z_loss": {},
    "clip": {},
}
MITIGATIONS = tuple(_SETTINGS)
# Of the mask of each tap; as docs/train.md has it, not as jaxllama.train does.
_FOLDS = {"attn_probs": 0, "o_proj": 1, "down_proj": 2}


@dataclass(frozen=True)
class StepCase:
    """A step that is judged.

    Attributes:
        name: in rows; empty for a plain one.
        settings: what is done.
        z_loss: weight of z-loss.
        clip: norm that all gradients together are cut down to.
    """

    name: str = ""
    settings: MitigationSettings = field(default_factory=MitigationSettings)
    z_loss: float = 0.0
    clip: float | None = None

    def row(self, parameter: str) -> str:
        """Return what a parameter's row is called."""
        return ".".join(("step", *([self.name] if self.name else []), parameter))

    def with_tau(self, largest: Mapping[int, np.ndarray]) -> StepCase:
        """Return the case with a tau that clips about half of all heads, whatever the model.

        Args:
            largest: logits of each head, by layer.
        """
        if self.settings.qk_clip is None:
            return self
        middle = float(np.median(np.concatenate([*largest.values()])))
        return replace(self, settings=replace(self.settings, qk_clip=max(middle, 1e-3)))

    def with_clip(self, norm: float, count: int, eps: float) -> StepCase:
        """Return the case with a norm that AdamW's step depends on, and that is not reached yet.

        The first step divides a gradient by itself and epsilon, so that all of them made larger or
        smaller move the same; not where they are as small as epsilon.

        Args:
            norm: of all gradients.
            count: of their numbers.
            eps: AdamW's epsilon.
        """
        if self.name != "clip":
            return self
        return replace(self, clip=min(norm / 2, eps * count**0.5))


PLAIN = StepCase()


def cases_of(names: tuple[str, ...]) -> list[StepCase]:
    """Return a plain step, and one for each name."""
    named = [
        StepCase(name, MitigationSettings(**_SETTINGS[name]), 0.3 * (name == "z_loss"))
        for name in names
    ]
    return [PLAIN, *named]


def kept_by(settings: MitigationSettings) -> Kept:
    """Return what dropout leaves, drawn by the rule of docs/train.md one mask at a time."""
    root = jax.random.key(settings.seed, impl="threefry2x32")
    of_part = jax.random.fold_in(jax.random.fold_in(root, STEPS_BEFORE), 0)

    def kept(layer: int, tap: str, shape: tuple[int, ...]) -> np.ndarray:
        key = jax.random.fold_in(jax.random.fold_in(of_part, layer), _FOLDS[tap])
        of_attention = tap == "attn_probs"
        share = settings.attention_dropout if of_attention else settings.residual_dropout
        return np.asarray(jax.random.bits(key, shape, "uint32")) >= round(share * 2**32)

    return kept


def norm_weights(case: StepCase, config: LlamaConfig) -> dict[str, np.ndarray]:
    """Return QK-norm's weights by canonical name: no ones, which would hide one for another."""
    if not case.settings.qk_norm:
        return {}
    drawn, layers = np.random.default_rng(SEED), range(config.num_hidden_layers)
    return {
        f"model.layers.{layer}.self_attn.{kind}.weight": 1 + drawn.normal(size=config.head_dim) / 3
        for kind in ("q_norm", "k_norm")
        for layer in layers
    }
