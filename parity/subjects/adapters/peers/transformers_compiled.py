"""transformers' Llama in PyTorch, compiled by `torch.compile` with its default settings.

Cannot show: what a layer does inside, which the compiler fuses; each layer's input, the last norm
and the logits it can. Needs a C++ compiler. Norms and softmax are float32 in float64 too.
"""

from __future__ import annotations

from typing import Any

from jaxllama.checkpoint import Checkpoint
from parity.inputs import Inputs
from parity.subjects import from_callable
from parity.subjects.adapters.hf_directory import hf_directory
from parity.subjects.adapters.module_names import hf_parameters
from parity.subjects.base import Subject

REQUIREMENT = "transformers==5.23.0"
NAMES = {"input.{i}": "layers.{i}.input", "norm": "norm", "logits": "logits"}


def subject(checkpoint: Checkpoint, dtype: str) -> Subject:
    """Return transformers' model, loaded by `from_pretrained` and compiled."""
    import torch
    from transformers import LlamaForCausalLM

    from parity.subjects.adapters.peers import transformers
    from parity.subjects.torch.arrays import to_numpy, torch_dtype
    from parity.subjects.torch_reference.loss import next_token_loss

    with hf_directory(checkpoint) as directory:
        model = LlamaForCausalLM.from_pretrained(directory, dtype=torch_dtype(dtype))
    model.config.output_hidden_states = True
    run = torch.compile(model)

    def shown(result: Any) -> dict[str, Any]:
        *inputs, norm = (to_numpy(one) for one in result.hidden_states)
        arrays = {f"input.{n}": one for n, one in enumerate(inputs)}
        return arrays | {"norm": norm, "logits": to_numpy(result.logits)}

    def decode(i: Inputs, start: int, stop: int, cache: Any) -> tuple[dict[str, Any], Any]:
        with torch.no_grad():
            result, cache = transformers.decode(run, i, start, stop, cache)
        return shown(result), cache

    def gradients(i: Inputs) -> dict[str, Any]:
        model.zero_grad()
        loss = next_token_loss(transformers.decode(run, i, 0, i.tokens.shape[1], None)[0].logits, i)
        loss.backward()
        held = {name: to_numpy(one.grad) for name, one in model.named_parameters()}
        return held | {"loss": to_numpy(loss)}

    tied = checkpoint.config.tie_word_embeddings
    return from_callable(
        lambda i: decode(i, 0, i.tokens.shape[1], None)[0], config=checkpoint.config, dtype=dtype,
        internal_dtype="f32", name="transformers-compiled", decode=decode, names=NAMES,
        parameters=hf_parameters(tied=tied), gradients=gradients,
    )  # fmt: skip
