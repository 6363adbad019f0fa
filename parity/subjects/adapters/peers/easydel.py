"""EasyDeL's Llama in Flax NNX, with its default attention.

Cannot show: scores and weights of attention, which its kernel keeps to itself; `rope.inv_freq`,
mask and positions; its cache, which is not run here. `EASYDEL_AUTO=0` keeps it from setting XLA's
flags, of which a newer jaxlib no longer knows some.
"""

from __future__ import annotations

import os
from typing import Any

from jaxllama.checkpoint import Checkpoint
from jaxllama.dtypes import parse
from parity.inputs import Inputs
from parity.subjects import Tap, from_nnx
from parity.subjects.adapters.hf_directory import hf_directory
from parity.subjects.adapters.module_names import kernel_axes, layer_names, parameter_names
from parity.subjects.base import Subject

REQUIREMENT = "easydel==0.3.0"
NAMES: dict[str, Any] = {
    "model.embed_tokens": "embed",
    **layer_names("model.layers.{i}", packed=True),
    "model.layers.{i}:input": Tap("layers.{i}.input", item="hidden_states"),
    "model.layers.{i}.self_attn._apply_rotary()": [
        Tap("layers.{i}.q_rope", item=0),
        Tap("layers.{i}.k_rope", item=1),
    ],
    "model.layers.{i}": Tap("layers.{i}.output", item="hidden_states"),
    "model.norm": "norm",
    "output": Tap("logits", item="logits"),
}
PARAMETERS = {"embed_tokens.weight": "embed_tokens.embedding", "weight$": "kernel"}


def subject(checkpoint: Checkpoint, dtype: str) -> Subject:
    """Return EasyDeL's model, converted by `AutoEasyDeLModelForCausalLM.from_pretrained`."""
    os.environ.setdefault("EASYDEL_AUTO", "0")
    os.environ.setdefault("ENABLE_DISTRIBUTED_INIT", "0")
    import easydel

    with hf_directory(checkpoint) as directory:
        model = easydel.AutoEasyDeLModelForCausalLM.from_pretrained(
            str(directory), dtype=parse(dtype), param_dtype=parse(dtype), auto_shard_model=False
        )
    tied = checkpoint.config.tie_word_embeddings
    return from_nnx(
        model, config=checkpoint.config, dtype=dtype, internal_dtype="f32", name="easydel",
        call=call, names=NAMES, parameters=parameter_names(PARAMETERS, kernel_axes, tied=tied),
    )  # fmt: skip


def call(model: Any, i: Inputs) -> Any:
    """Run it on a scenario, whose mask it is given whole."""
    import jax.numpy as jnp
    from ejkernel.types import MaskInfo

    with model.mesh:
        return model(
            input_ids=jnp.asarray(i.tokens),
            position_ids=jnp.asarray(i.positions),
            mask_info=MaskInfo.from_attention_mask(jnp.asarray(i.mask)),
        )
