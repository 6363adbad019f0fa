"""google-tunix's Llama 3 in Flax NNX.

Cannot show: `rope.inv_freq`, made inside the rotation; mask and positions, which are the
caller's. Its configuration has no field for a scaling of the rotation. Norms and softmax are
float32 in float64 too.
"""

from __future__ import annotations

from typing import Any

from jaxllama.checkpoint import Checkpoint
from jaxllama.dtypes import parse
from parity.inputs import Inputs
from parity.subjects import Calls, Tap, from_nnx
from parity.subjects.adapters.hf_directory import hf_directory
from parity.subjects.adapters.module_names import layer_names, parameter_names, split_axes
from parity.subjects.base import Subject

REQUIREMENT = "google-tunix==0.1.7"
NAMES: dict[str, Any] = {
    "embedder.encode()": "embed",
    **layer_names("layers.{i}", packed=False, renamed={"self_attn": "attn"}),
    "tunix.models.llama3.model.apply_rope()": Calls("layers.{i}.q_rope", "layers.{i}.k_rope"),
    "jax.lax.dynamic_update_slice()": Calls("cache.{i}.v", "cache.{i}.k"),
    "jax.nn.softmax():input": "layers.{i}.attn_scores",
    "jax.nn.softmax()": "layers.{i}.attn_probs",
    "layers.{i}": Tap("layers.{i}.output", item=1),
    "final_norm": "norm",
    "output": Tap("logits", item=0),
}
PARAMETERS = {
    "^model.norm.weight": "final_norm.w",
    "^model.embed_tokens.weight": "embedder.input_embedding",
    "^model.": "",
    "self_attn": "attn",
    "(mlp.*)weight": r"\1kernel",
    "weight$": "w",
}


def subject(checkpoint: Checkpoint, dtype: str) -> Subject:
    """Return tunix's model, loaded by `create_model_from_safe_tensors`."""
    from tunix.models.llama3 import model, params

    c = checkpoint.config
    config = model.ModelConfig(
        c.num_hidden_layers, c.vocab_size, c.hidden_size, c.intermediate_size,
        c.num_attention_heads, c.head_dim, c.num_key_value_heads, int(c.rope_theta), c.rms_norm_eps,
        weight_tying=c.tie_word_embeddings,
    )  # fmt: skip
    with hf_directory(checkpoint) as directory:
        llama = params.create_model_from_safe_tensors(str(directory), config, dtype=parse(dtype))
    return from_nnx(
        llama, config=c, dtype=dtype, internal_dtype="f32", name="tunix", names=NAMES,
        call=lambda model, i: model(i.tokens, i.positions, None, i.mask), decode=decode,
        parameters=parameter_names(PARAMETERS, split_axes, tied=c.tie_word_embeddings),
    )  # fmt: skip


def decode(model: Any, i: Inputs, start: int, stop: int, cache: Any) -> tuple[Any, Any]:
    """Feed columns through a cache with a slot for every column, as tunix's sampler makes it."""
    import jax.numpy as jnp

    c, size = model.config, i.tokens.shape
    if cache is None:
        like = jnp.zeros((*size, c.num_kv_heads, c.head_dim), model.final_norm.w[...].dtype)
        one = {"k": like, "v": like, "end_index": jnp.zeros(size[:1], int)}
        cache = {f"layer_{n}": one for n in range(c.num_layers)}
    fed = slice(start, stop)
    result = model(i.tokens[:, fed], i.positions[:, fed], cache, i.mask[:, fed])
    return result, result[1]
