"""SkyRL's Llama 3 in Flax NNX (package skyrl-tx).

Cannot show: scores and weights of attention, which `jax.nn.dot_product_attention` keeps to
itself; `rope.inv_freq`, mask and positions. Takes a row's valid keys and no other mask, so no
packed rows. Its cache takes a prompt at once, then one token at a time, which no decode run here
does.
"""

from __future__ import annotations

from typing import Any

from jaxllama.checkpoint import Checkpoint
from jaxllama.dtypes import parse
from parity.inputs import Inputs
from parity.subjects import Calls, Takes, Tap, from_nnx
from parity.subjects.adapters.hf_directory import hf_directory
from parity.subjects.adapters.module_names import kernel_axes, layer_names, parameter_names
from parity.subjects.base import Subject

REQUIREMENT = "skyrl-tx==0.3.0"
SCENARIOS = ("causal", "long_positions", "right_padded")
NAMES: dict[str, Any] = {
    "model.embed_tokens": "embed",
    **layer_names("model.layers.{i}", packed=True),
    "tx.models.llama3.apply_rope()": Calls("layers.{i}.q_rope", "layers.{i}.k_rope"),
    "model.layers.{i}": Tap("layers.{i}.output", item=0),
    "model.norm": "norm",
    "output": "logits",
}
PARAMETERS = {"embed_tokens.weight": "embed_tokens.embedding", "(proj|head).weight": r"\1.kernel"}


def subject(checkpoint: Checkpoint, dtype: str) -> Subject:
    """Return SkyRL's model, filled by `load_safetensors`."""
    import jax
    from flax import nnx
    from jax.sharding import AxisType
    from transformers import AutoConfig
    from tx.models.configs import ModelConfig
    from tx.models.llama3 import Llama3ForCausalLM
    from tx.utils.models import load_safetensors

    tied = checkpoint.config.tie_word_embeddings
    with (
        hf_directory(checkpoint) as directory,
        jax.set_mesh(
            jax.make_mesh((1, 1, 1), ("fsdp", "ep", "tp"), axis_types=(AxisType.Auto,) * 3)
        ),
    ):
        base = AutoConfig.from_pretrained(directory)
        config = ModelConfig(base, max_lora_adapters=0, max_lora_rank=1, shard_attention_heads=True)
        model = Llama3ForCausalLM(config, dtype=parse(dtype), rngs=nnx.Rngs(0))
        load_safetensors(directory, config, model)
    return from_nnx(
        model, config=checkpoint.config, takes=Takes(scenarios=SCENARIOS), dtype=dtype,
        name="skyrl", names=NAMES, call=call,
        parameters=parameter_names(PARAMETERS, kernel_axes, tied=tied),
    )  # fmt: skip


def call(model: Any, i: Inputs) -> Any:
    """Run it on a scenario; logits are made of its result, as its own sampler and trainer do."""
    result = model(i.tokens, attention_mask=i.valid.astype(int), positions=i.positions)
    return model.compute_logits(result.last_hidden_state)
