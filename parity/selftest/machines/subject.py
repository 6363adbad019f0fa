"""The PyTorch reference as another machine would run it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jaxllama.errors import InputError
from parity.selftest.machines.library import Library
from parity.selftest.machines.sums import SummationOrder, contract, product
from parity.subjects.base import CheckpointLike
from parity.subjects.torch.arrays import Recorder
from parity.subjects.torch_reference.subject import TorchReference


@dataclass(frozen=True)
class Machine:
    """How a processor and its libraries compute.

    Attributes:
        name: in a few words.
        order: in which float32 products, norms and softmaxes are summed; None as PyTorch does.
        fused: whether a multiplication and the addition after it are rounded once.
        library: where its elementary functions come from; None is PyTorch.
        keys: of how many keys a block of its fused attention is; 0 for attention in steps.
    """

    name: str
    order: SummationOrder | None = None
    fused: bool = False
    library: Library | None = None
    keys: int = 0

    @property
    def replaces(self) -> frozenset[str]:
        """Which operators it computes otherwise than PyTorch here."""
        found = set()
        if self.order:
            found |= {"product", "norm", "softmax"}
        if self.library:
            found |= {"norm", "softmax", "angles", "activation"}
        return frozenset(found - {"softmax"} | {"attention"} if self.keys else found)


class ImitatedMachine(TorchReference):
    """The reference with the operators that a machine replaces.

    Args:
        checkpoint: as the reference's.
        dtype: `f32` or `bf16`; products of bfloat16 are summed in float32 and rounded once.
        machine: what is imitated.

    Attributes:
        changed: operators that gave other bits than PyTorch's, on the same inputs, so far.
    """

    def __init__(self, checkpoint: CheckpointLike, dtype: str, machine: Machine) -> None:
        if dtype not in ("f32", "bf16"):
            raise InputError(f"dtype {dtype!r}: machines are imitated in f32 and bf16")
        super().__init__(checkpoint, dtype=dtype)
        self.name = f"torch, {machine.name}"
        self.machine = machine
        self.changed: set[str] = set()
        if machine.keys:
            self.absent = frozenset({"layers.attn_scores", "layers.attn_probs"})

    def _note(self, operator: str, ours: Tensor, plain: Tensor) -> Tensor:
        if not torch.equal(ours, plain):
            self.changed.add(operator)
        return ours

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        """Contract as the machine does, in float32."""
        order = self.machine.order
        if order is None:
            return a.float() @ b.float()
        return product(a, b, order, fused=self.machine.fused)

    def _sum(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the sum of left * right over the last axis, which is kept with one element."""
        order = self.machine.order
        if order is None:
            return (left * right).sum(-1, keepdim=True)
        first, second = (x.movedim(-1, 0).contiguous() for x in (left, right))
        return contract(first, second, order, fused=self.machine.fused)[..., None]

    def _exp(self, x: Tensor) -> Tensor:
        return x.exp() if self.machine.library is None else self.machine.library.exp(x)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        if self.machine.order is None:
            return super().matmul(a, b)
        return self._note("product", self._product(a, b).to(a.dtype), super().matmul(a, b))

    def angles(self, freq: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().angles(freq, positions)
        if (library := self.machine.library) is None:
            return cos, sin
        angle = positions[:, :, None].to(self.wide) * freq
        mine = library.cos(angle), library.sin(angle)
        return self._note("angles", mine[0], cos), self._note("angles", mine[1], sin)

    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        plain = super().rms_norm(x, name)
        if "norm" not in self.machine.replaces:
            return plain
        wide = x.to(self.wide)
        mean = self._sum(wide, wide) / x.shape[-1] + self.config.rms_norm_eps
        library = self.machine.library
        rounded = (wide / mean.sqrt() if library is None else wide * library.rsqrt(mean)).to(
            x.dtype
        )
        return self._note("norm", rounded * self.weight(f"{name}.weight").to(x.dtype), plain)

    def probs(self, scores: Tensor, mask: Tensor) -> Tensor:
        plain = super().probs(scores, mask)
        if "softmax" not in self.machine.replaces:
            return plain
        visible = mask[:, None]
        hidden = scores.masked_fill(~visible, -math.inf)
        largest = hidden.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
        weights = self._exp(hidden - largest)
        total = self._sum(weights, torch.ones(weights.shape[-1]).expand_as(weights))
        probs = weights / total.masked_fill(total == 0, 1)  # of a row that sees nothing
        return self._note("softmax", probs, plain)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, tap: Recorder) -> Tensor:
        if not self.machine.keys:
            return super().attend(q, k, v, mask, tap)
        heads = self.kv_head_of_query()
        q, k, v = q.transpose(1, 2), k[:, :, heads].transpose(1, 2), v[:, :, heads].transpose(1, 2)
        context = self._online(q, k, v, mask[:, None]).to(v.dtype)
        probs = super().probs(q.to(self.wide) @ k.to(self.wide).mT * self.scale(), mask)
        self._note("attention", context, probs.to(v.dtype) @ v)
        return tap("attn_context", context.transpose(1, 2))

    def _online(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Return softmax(q k) v [B N T H] in float32, a block of keys at a time.

        Args:
            q: [B N T H].
            k: [B N S H], one key head for each query head.
            v: as `k`.
            mask: [B 1 T S].

        Source: Milakov and Gimelshein, arXiv 1805.02867; the blocks as in arXiv 2205.14135.
        """
        lowest = torch.finfo(torch.float32).min
        largest = torch.full((*q.shape[:3], 1), lowest)
        total, context = torch.zeros_like(largest), torch.zeros(q.shape)
        for start in range(0, k.shape[2], self.machine.keys):
            block = slice(start, start + self.machine.keys)
            scores = self._product(q, k[:, :, block].mT) * self.scale()
            scores = scores.masked_fill(~mask[..., block], -math.inf)
            before, largest = largest, torch.maximum(largest, scores.amax(-1, keepdim=True))
            weights, kept = self._exp(scores - largest), self._exp(before - largest)
            ones = torch.ones(weights.shape[-1]).expand_as(weights)
            total = total * kept + self._sum(weights, ones)
            context = context * kept + self._product(weights.to(v.dtype), v[:, :, block])
        return context / total.masked_fill(total == 0, 1)

    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        plain = super().activation(gate, up)
        if (library := self.machine.library) is None:
            return plain
        wide = gate.to(self.wide)
        silu = (wide * library.logistic(wide)).to(gate.dtype)
        return self._note("activation", silu * up, plain)
