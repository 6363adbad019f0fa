"""Our own Llama in eager PyTorch: the reference in float64, a witness in float32 and bfloat16.

It is written to be read beside the model it judges, and shares nothing with it but the
configuration's fields. Each operator is a small method that sees tensors alone: a subclass that
overrides one is the same model with exactly that fault, which is how `parity` confirms a cause.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, H head dim, D model dim, F mlp dim,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from numpy.typing import DTypeLike
from torch import Tensor

from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.options import lane_of
from parity.subjects.base import CheckpointLike
from parity.subjects.torch.arrays import Recorder, at_least_float32, torch_dtype
from parity.subjects.torch.weights import Weights, stored_weights
from parity.subjects.torch_reference.loss import next_token_loss
from parity.subjects.torch_reference.operations import Value
from parity.subjects.torch_reference.program import (
    ACTIVATION,
    ANGLES,
    CONTEXT,
    COS,
    EMBED,
    LINEAR,
    NORM,
    PROBS,
    ROTATE,
    SCORES,
    SIN,
    Program,
    inv_freq_program,
    kv_head_map,
    rope_constants,
    run_program,
)

Variant = Literal["eager", "reordered", "laned", "sdpa", "doubled"]

# As many float32 numbers as a vector register of AVX2 holds.
SUM_LANES = 8


@dataclass
class LayerContext:
    """What a decoder layer needs beside the residual stream.

    Attributes:
        cos, sin: of every position's angles [B T H/2].
        mask: what each query sees [B T S].
        cache: keys and values of earlier columns by layer [B S K H]; None runs without one.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor
    cache: dict[int, tuple[Tensor, Tensor]] | None

    def remember(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values to the layer's cache; return all that it holds."""
        if self.cache is None:
            return k, v
        if layer in self.cache:
            past_k, past_v = self.cache[layer]
            k, v = torch.cat([past_k, k], dim=1), torch.cat([past_v, v], dim=1)
        self.cache[layer] = k, v
        return k, v


class TorchModel:
    """The reference model over a checkpoint's weights.

    Args:
        checkpoint: read lazily; a weight is cast when it is used and dropped after, unless another
            holds it in this dtype.
        dtype: `f64`, `f32` or `bf16`. Norms, rotations, softmax and logits are computed in at
            least float32.
        variant: honest ways to compute the same, for measuring rounding noise: `eager`;
            `reordered` sums every contraction from its other end; `laned` sums every eighth
            term of a product, and then these sums; `sdpa` is PyTorch's fused
            attention, which shows no scores; `doubled` runs the batch beside a copy of itself.
        config: used in place of the checkpoint's own.
    """

    def __init__(
        self,
        checkpoint: CheckpointLike,
        *,
        dtype: DTypeLike = "f64",
        variant: Variant = "eager",
        config: LlamaConfig | None = None,
    ) -> None:
        if variant not in get_args(Variant):
            raise InputError(f"variant {variant!r}: expected one of {', '.join(get_args(Variant))}")
        self.name = "torch" if variant == "eager" else f"torch-{variant}"
        self.dtype = lane_of(dtype)
        self.variant = variant
        self.config = checkpoint.config if config is None else config
        fused = {"layers.attn_scores", "layers.attn_probs"}
        self.absent: frozenset[str] = frozenset(fused if variant == "sdpa" else ())
        self.compute = torch_dtype(dtype)
        self.wide = at_least_float32(self.compute)
        self.internal_dtype = "f64" if self.dtype == "f64" else "f32"
        self.weights: Weights = stored_weights(checkpoint)
        self._checkpoint = checkpoint

    @property
    def backwards(self) -> bool:
        """Whether sums are taken from their other end."""
        return self.variant == "reordered"

    # Operators. Override one to make the reference wrong in that one way.

    def weight(self, name: str) -> Tensor:
        """Return a weight by canonical name, in any dtype; users round it to the run's."""
        return self.weights[name]

    def _run(self, program: Program, **operands: Value) -> Tensor:
        return run_program(program, operands, self)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the vectors [B T D] of token ids [B T]."""
        return self._run(EMBED, weight=self.weight("model.embed_tokens.weight"), tokens=tokens)

    def inv_freq(self) -> Tensor:
        """Return the radians per token of each feature pair [H/2], float64, fastest first."""
        program = inv_freq_program(self.config.rope_scaling)
        return self._run(program, **rope_constants(self.config))

    def angles(self, freq: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin [B T H/2] of frequency times position."""
        angle = self._run(ANGLES, freq=freq, positions=positions)
        return self._run(COS, angle=angle), self._run(SIN, angle=angle)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate feature i of [B T heads H] against feature i + H/2, rounding once."""
        return self._run(ROTATE, x=x, cos=cos, sin=sin)

    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        """Divide [B T D] by its root mean square, round, then scale by the weight `name`."""
        weight = self.weight(f"{name}.weight")
        return self._run(NORM, x=x, weight=weight, eps=self.config.rms_norm_eps)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """Multiply [.. in] by the weight `name` [out in], rounded to the run's dtype."""
        return self._run(LINEAR, x=x, weight=self.weight(f"{name}.weight"))

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Contract the last axis of `a` with the last but one of `b`."""
        if self.backwards:
            a, b = a.flip(-1), b.flip(-2)
        if self.variant == "laned":
            lanes, wide = range(min(SUM_LANES, a.shape[-1])), (a.to(self.wide), b.to(self.wide))
            parts = [wide[0][..., i::SUM_LANES] @ wide[1][..., i::SUM_LANES, :] for i in lanes]
            return torch.stack(parts).sum(0).to(a.dtype)  # rounded once, as libraries do
        return a @ b

    def kv_head_of_query(self) -> Tensor:
        """Return which kv head each query head reads [N]: neighbours share one."""
        return kv_head_map(self.config)

    def scale(self) -> float:
        """Return the factor on the scores."""
        return self.config.head_dim**-0.5

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Return scaled scores [B N T S] before the mask, of q [B T N H] and k [B S N H]."""
        return self._run(SCORES, q=q, k=k, scale=self.scale())

    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Return softmax over the keys that mask [B T S] shows; a row that sees none is zero."""
        return self._run(PROBS, scores=scores, mask=mask)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, tap: Recorder) -> Tensor:
        """Return each query head's weighted values [B T N H]."""
        heads = self.kv_head_of_query()
        k, v = k[:, :, heads], v[:, :, heads]
        if self.variant == "sdpa":
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            context = F.scaled_dot_product_attention(q, k, v, mask[:, None], scale=self.scale())
            # Fused kernels differ in what they give for a row that sees nothing; ours is zero.
            context = context.masked_fill(~mask.any(-1)[:, None, :, None], 0)
        else:
            scores = tap("attn_scores", self.scores(q, k))
            probs = tap("attn_probs", self.probs(scores, mask))
            return tap("attn_context", self._run(CONTEXT, probs=probs, v=v))
        return tap("attn_context", context.transpose(1, 2))

    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return silu(gate) * up [B T F]."""
        return self._run(ACTIVATION, gate=gate, up=up)

    def setup(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: dict[int, tuple[Tensor, Tensor]] | None,
        tap: Recorder,
    ) -> tuple[Tensor, LayerContext]:
        """Return the residual stream's beginning [B T D], and what every layer is given."""
        freq = tap("rope.inv_freq", self.inv_freq().to(self.wide))
        positions, mask = tap("positions", positions), tap("mask", mask)
        x = tap("embed", self.embed(tokens))
        return x, LayerContext(*self.angles(freq, positions), mask, cache)

    def layer(self, i: int, x: Tensor, around: LayerContext, tap: Recorder) -> Tensor:
        """Apply decoder layer `i` to the residual stream [B T D]."""
        c, name = self.config, f"model.layers.{i}"
        H, split = c.head_dim, x.shape[:2]
        x = tap("input", x)
        h = tap("input_layernorm", self.rms_norm(x, f"{name}.input_layernorm"))
        q, k, v = (
            tap(p, self.linear(h, f"{name}.self_attn.{p}").view(*split, -1, H))
            for p in ("q_proj", "k_proj", "v_proj")
        )
        q = tap("q_rope", self.rotate(q, around.cos, around.sin))
        k = tap("k_rope", self.rotate(k, around.cos, around.sin))
        k, v = around.remember(i, k, v)
        h = self.attend(q, k, v, around.mask, tap).reshape(*split, -1)
        x = tap("post_attention", x + tap("o_proj", self.linear(h, f"{name}.self_attn.o_proj")))
        h = self.rms_norm(x, f"{name}.post_attention_layernorm")
        h = tap("post_attention_layernorm", h)
        gate = tap("gate_proj", self.linear(h, f"{name}.mlp.gate_proj"))
        up = tap("up_proj", self.linear(h, f"{name}.mlp.up_proj"))
        h = tap("mlp_act", self.activation(gate, up))
        return tap("output", x + tap("down_proj", self.linear(h, f"{name}.mlp.down_proj")))

    def head(self, x: Tensor, tap: Recorder) -> Tensor:
        """Return logits [B T V] in at least float32: final norm, then the (tied) projection."""
        x = tap("norm", self.rms_norm(x, "model.norm"))
        tied = self.config.tie_word_embeddings
        name = "model.embed_tokens" if tied else "lm_head"
        return tap("logits", self.linear(x.to(self.wide), name))

    def loss(self, logits: Tensor, inputs: Inputs) -> Tensor:
        """Return the mean cross-entropy of every real token's successor, of logits [B T V]."""
        return next_token_loss(logits, inputs)
