"""The reference with what is done against training that diverges, by PyTorch's own functions.

Each is written from its source, and shares nothing with `jaxllama.train` but the settings; what
is dropped is handed in. Override a method to make it wrong in that one way.

Shapes: B batch, T tokens, N query heads, K kv heads, H head dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jaxllama.train.config import MitigationSettings
from parity.inputs import Inputs
from parity.subjects.base import CheckpointLike
from parity.subjects.torch.arrays import Recorder, to_torch
from parity.subjects.torch.weights import Weights
from parity.subjects.torch_reference.loss import successors
from parity.subjects.torch_reference.model import LayerContext
from parity.subjects.torch_reference.subject import TorchReference

# Of a layer and a tap: True where its values are kept.
Kept = Callable[[int, str, tuple[int, ...]], np.ndarray]
_NORMS = {"q_proj": "q_norm", "k_proj": "k_norm"}


class MitigatedReference(TorchReference):
    """The reference as it is trained.

    Args:
        checkpoint: what it begins with.
        settings: what is done.
        z_loss: weight of the square of the logarithm of the softmax's denominator.
        inputs: what it is run on.
        kept: what dropout leaves.
        norms: QK-norm's weights by canonical name, in float64.

    Attributes:
        largest: scaled scores of each head [N] that a token sees, by layer, before any cap.
    """

    def __init__(
        self,
        checkpoint: CheckpointLike,
        settings: MitigationSettings,
        z_loss: float,
        inputs: Inputs,
        kept: Kept,
        norms: Mapping[str, np.ndarray],
    ) -> None:
        super().__init__(checkpoint, dtype="f64")
        self.weights = _Joined(self.weights, {n: to_torch(array) for n, array in norms.items()})
        self._settings, self._z_loss, self._kept = settings, z_loss, kept
        self._sees = to_torch(inputs.mask & inputs.valid[:, :, None])
        self._index = 0
        self.largest: dict[int, Tensor] = {}

    def layer(self, i: int, x: Tensor, around: LayerContext, tap: Recorder) -> Tensor:
        """Apply decoder layer `i`."""
        self._index = i
        return super().layer(i, x, around, tap)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """Multiply, then norm each head's queries or keys, or drop what is to be added."""
        out, (parent, _, kind) = super().linear(x, name), name.rpartition(".")
        if kind in _NORMS and self._settings.qk_norm:
            weight = self.weight(f"{parent}.{_NORMS[kind]}.weight")
            return self.head_norm(out.unflatten(-1, (-1, len(weight))), weight).flatten(-2)
        if kind in ("o_proj", "down_proj"):
            return self.drop(out, kind, self._settings.residual_dropout)
        return out

    def head_norm(self, heads: Tensor, weight: Tensor) -> Tensor:
        """Return each head [B T heads H] over its root mean square, scaled."""
        return F.rms_norm(heads, weight.shape, weight, self.config.rms_norm_eps)

    def drop(self, value: Tensor, tap: str, share: float) -> Tensor:
        """Return what is kept, scaled up to the same mean."""
        if not share:
            return value
        kept = torch.from_numpy(self._kept(self._index, tap, tuple(value.shape)))
        return (value / (1 - share)).masked_fill(~kept, 0)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Return scaled scores, capped."""
        found = super().scores(q, k)
        visible = found.detach().masked_fill(~self._sees[:, None], -torch.inf)
        self.largest[self._index] = visible.amax(dim=(0, 2, 3))
        return self.cap(found, self._settings.score_cap)

    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Return the softmax, some of it dropped."""
        found = super().probs(scores, mask)
        return self.drop(found, "attn_probs", self._settings.attention_dropout)

    def head(self, x: Tensor, tap: Recorder) -> Tensor:
        """Return logits, capped."""
        return self.cap(super().head(x, tap), self._settings.logit_cap)

    def cap(self, value: Tensor, cap: float | None) -> Tensor:
        """Return cap * tanh(value / cap)."""
        return value if cap is None else torch.tanh(value / cap) * cap

    def loss(self, logits: Tensor, inputs: Inputs) -> Tensor:
        """Return the loss and its z-loss."""
        plain = super().loss(logits, inputs)
        if not self._z_loss:
            return plain
        rows, columns, _ = (torch.tensor(x) for x in zip(*successors(inputs), strict=True))
        normaliser = torch.logsumexp(logits[rows, columns], dim=-1)
        return plain + self._z_loss * normaliser.square().mean()

    def clip_gradients(self, gradients: Sequence[Tensor], most: float) -> None:
        """Cut all gradients together down to a norm, in place.

        `torch.nn.utils.clip_grad_norm_` adds 1e-6 to what it divides by, which is seen here.
        """
        norm = torch.nn.utils.get_total_norm(gradients)
        for gradient in gradients:
            gradient.mul_((most / norm).clamp(max=1))

    def clip(self, weights: Mapping[str, Tensor], tau: float) -> None:
        """Scale the projections of every head whose logits were above tau, in place.

        Where query heads share a kv head, the queries' alone.
        """
        H = self.config.head_dim
        shared = self.config.num_key_value_heads < self.config.num_attention_heads
        with torch.no_grad():
            for layer, largest in self.largest.items():
                for head, logit in enumerate(largest.tolist()):
                    if logit <= tau:
                        continue
                    rows = slice(head * H, (head + 1) * H)
                    for kind in ("q_proj",) if shared else ("q_proj", "k_proj"):
                        power = 1.0 if shared else 0.5
                        weight = weights[f"model.layers.{layer}.self_attn.{kind}.weight"]
                        weight[rows] *= (tau / logit) ** power


class _Joined:
    """Weights, and some that no checkpoint has."""

    def __init__(self, weights: Weights, added: Mapping[str, Tensor]) -> None:
        self._weights, self._added = weights, added

    def __contains__(self, name: str) -> bool:
        return name in self._added or name in self._weights

    def __getitem__(self, name: str) -> Tensor:
        return self._added[name] if name in self._added else self._weights[name]
