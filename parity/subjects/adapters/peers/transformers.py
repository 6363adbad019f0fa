"""Hugging Face transformers' Llama in PyTorch, eager attention.

Cannot show: `rope.inv_freq`, a buffer that no call hands out, and the mask, which is the
caller's. Norms and softmax are float32 in float64 too, which is therefore not judged.
"""

from __future__ import annotations

from typing import Any

from jaxllama.checkpoint import Checkpoint
from parity.inputs import Inputs
from parity.subjects import from_torch
from parity.subjects.adapters.hf_directory import hf_directory
from parity.subjects.adapters.module_names import HF_NAMES, hf_parameters
from parity.subjects.base import Subject

REQUIREMENT = "transformers==5.23.0"


def subject(checkpoint: Checkpoint, dtype: str) -> Subject:
    """Return transformers' model, loaded by `from_pretrained`."""
    from transformers import LlamaForCausalLM

    from parity.subjects.torch.arrays import torch_dtype

    with hf_directory(checkpoint) as directory:
        model = LlamaForCausalLM.from_pretrained(
            directory, dtype=torch_dtype(dtype), attn_implementation="eager"
        )
    tied = checkpoint.config.tie_word_embeddings
    return from_torch(
        model, config=checkpoint.config, dtype=dtype, internal_dtype="f32", name="transformers",
        call=lambda model, i: decode(model, i, 0, i.tokens.shape[1], None)[0],
        decode=decode, parameters=hf_parameters(tied=tied), names=HF_NAMES,
    )  # fmt: skip


def decode(model: Any, i: Inputs, start: int, stop: int, cache: Any) -> tuple[Any, Any]:
    """Feed columns through transformers' cache, which it makes itself at first."""
    import torch

    def given(array: Any) -> Any:
        return torch.tensor(array).to(model.device)

    hidden = given(~i.mask[:, None, start:stop, :stop])
    bias = given([0.0]).to(model.dtype).expand(hidden.shape)
    result = model(
        given(i.tokens[:, start:stop].astype("int64")),
        attention_mask=bias.masked_fill(hidden, torch.finfo(model.dtype).min),
        position_ids=given(i.positions[:, start:stop].astype("int64")),
        past_key_values=cache,
        use_cache=True,
    )
    return result, result.past_key_values
