"""transformers' Llama run by JAX: PyTorch's operators on torchax.

Cannot show: `rope.inv_freq`, a buffer that no call hands out; attention's scores; the mask, which
is the caller's; gradients, for which JAX differentiates a function and `backward()` is none.
Names 60 overloads that PyTorch 2.13 has no longer: stand-ins let it be imported, and would be
refused if they were called.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from jaxllama.checkpoint import Checkpoint
from parity.inputs import Inputs
from parity.subjects import Tap, from_torch
from parity.subjects.adapters.hf_directory import hf_directory
from parity.subjects.adapters.module_names import HF_NAMES
from parity.subjects.base import Subject

REQUIREMENT = "torchax==0.0.13"
# PyTorch's softmax calls itself again on the way to JAX: its calls tell no layers apart.
EAGER = "transformers.models.llama.modeling_llama.eager_attention_forward()"
NAMES = {place: tap for place, tap in HF_NAMES.items() if "softmax" not in place} | {
    EAGER: Tap("layers.{i}.attn_probs", item=1)
}


def subject(checkpoint: Checkpoint, dtype: str) -> Subject:
    """Return transformers' model, its weights moved to JAX."""
    from transformers import LlamaForCausalLM

    from parity.subjects.torch.arrays import torch_dtype

    torchax = _imported()
    with hf_directory(checkpoint) as directory:
        model = LlamaForCausalLM.from_pretrained(
            directory, dtype=torch_dtype(dtype), attn_implementation="eager"
        )
    with torchax.default_env():
        model = model.to("jax")
    made = from_torch(
        model, config=checkpoint.config, dtype=dtype, internal_dtype="f32", name="torchax",
        call=lambda model, i: decode(model, i, 0, i.tokens.shape[1], None)[0],
        decode=decode, names=NAMES,
    )  # fmt: skip
    made.can_force = False  # what is put in a value's place would be PyTorch's
    return made


def decode(model: Any, i: Inputs, start: int, stop: int, cache: Any) -> tuple[Any, Any]:
    """Feed columns through transformers' cache."""
    import torchax

    from parity.subjects.adapters.peers import transformers

    with torchax.default_env():
        return transformers.decode(model, i, start, stop, cache)


def _imported() -> Any:
    """Import torchax beside a PyTorch whose named tensors are gone."""
    from torch._ops import OpOverloadPacket as Packet

    found = Packet.__getattr__

    def overload(packet: Any, name: str) -> Any:
        gone = "imname" in name or "names" in name
        return f"no overload {packet}.{name}" if gone else found(packet, name)

    with patch.object(Packet, "__getattr__", overload):
        import torchax

        torchax.default_env()
    return torchax
