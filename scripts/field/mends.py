"""What mends a peer in memory: each finding of a run is put right there, and the run repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from jaxllama.checkpoint import Checkpoint


def mended(peer: str, checkpoint: Checkpoint) -> tuple[str, Any] | None:
    """Return what is put right in words, and the context that it lasts for; None if nothing is.

    Args:
        peer: its name.
        checkpoint: whose configuration the peer is to follow.
    """
    if peer not in MENDS:
        return None
    said, mend = MENDS[peer]
    return said, mend(checkpoint)


def _rotated(checkpoint: Checkpoint) -> Callable[..., Any]:
    """Return a rotation of halves by the angles of a checkpoint's own configuration."""
    import jax.numpy as jnp

    from parity.subjects.torch_reference.frequency_table import frequency_table

    table = frequency_table(checkpoint.config)

    def rotate(inputs: Any, positions: Any, *_: Any, **__: Any) -> Any:
        angles = positions[..., None, None] * jnp.asarray(table, jnp.float32)
        a, b = jnp.split(inputs, 2, axis=-1)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(inputs.dtype)

    return rotate


@contextmanager
def _tunix(checkpoint: Checkpoint) -> Iterator[None]:
    from tunix.models.llama3 import model

    with patch.object(model, "apply_rope", _rotated(checkpoint)):
        yield


@contextmanager
def _skyrl(checkpoint: Checkpoint) -> Iterator[None]:
    from tx.models import llama3

    def head(model: Any) -> Any:
        if not checkpoint.config.tie_word_embeddings:
            return model.lm_head
        return lambda hidden, _=None: hidden @ model.model.embed_tokens.embedding[...].T

    with (
        patch.object(llama3, "apply_rope", _rotated(checkpoint)),
        patch.object(llama3.Llama3ForCausalLM, "get_lm_head", head),
    ):
        yield


@contextmanager
def _keras_hub(checkpoint: Checkpoint) -> Iterator[None]:
    from keras_hub.src.utils.transformers import convert_llama3

    theirs = convert_llama3.convert_backbone_config

    def with_eps(config: dict[str, Any]) -> dict[str, Any]:
        return {**theirs(config), "layer_norm_epsilon": config["rms_norm_eps"]}

    with patch.object(convert_llama3, "convert_backbone_config", with_eps):
        yield


@contextmanager
def _litgpt(checkpoint: Checkpoint) -> Iterator[None]:
    import litgpt
    import torch

    class TiedHead(torch.nn.Module):
        def __init__(self, embedding: Any) -> None:
            super().__init__()
            self.held = (embedding,)  # a tuple's modules are nobody's children

        @property
        def weight(self) -> Any:
            return self.held[0].weight

        def forward(self, x: Any) -> Any:
            return torch.nn.functional.linear(x, self.weight)

    load = litgpt.GPT.load_state_dict

    def tied(model: Any, weights: Any) -> Any:
        found = load(model, weights)
        if checkpoint.config.tie_word_embeddings:
            model.lm_head = TiedHead(model.transformer.wte)
        return found

    with patch.object(litgpt.GPT, "load_state_dict", tied):
        yield


@contextmanager
def _easydel(checkpoint: Checkpoint) -> Iterator[None]:
    import easydel
    import jax.numpy as jnp
    import torch
    from easydel.infra.base_config import EasyDeLBaseConfig
    from easydel.infra.utils import ModuleCaches

    from parity.subjects.torch_reference.frequency_table import frequency_table

    auto = easydel.AutoEasyDeLModelForCausalLM
    load = auto.from_pretrained
    wide = {"torch_dtype": torch.float32, "config_kwargs": {"attn_dtype": jnp.float32}}

    def in_float32(path: str, **options: Any) -> Any:
        return load(path, **wide, **options)

    def table(config: Any) -> Any:
        columns = jnp.arange(config.max_position_embeddings, dtype=jnp.float32)
        angles = columns[:, None] * jnp.asarray(frequency_table(checkpoint.config), jnp.float32)
        return ModuleCaches(jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1))

    with (
        patch.object(auto, "from_pretrained", staticmethod(in_float32)),
        patch.object(EasyDeLBaseConfig, "get_basic_frequencies", table),
    ):
        yield


MENDS: dict[str, tuple[str, Callable[[Checkpoint], Any]]] = {
    "tunix": ("`apply_rope` takes the angles of the config's `rope_theta` and scaling", _tunix),
    "skyrl": (
        "`apply_rope` takes the angles of the config's `rope_theta` and scaling, and a tied head "
        "is of the embedding that the module holds: `embed_tokens.T` keeps the one it was made of, "
        "which a copy by `nnx.split` and `nnx.merge`, such as is differentiated, no longer has",
        _skyrl,
    ),
    "keras-hub": ("`convert_backbone_config` hands on `rms_norm_eps`", _keras_hub),
    "easydel": (
        "`from_pretrained` is given `torch_dtype=float32` and `attn_dtype=float32` (their defaults "
        "are float16 and bfloat16, whatever `dtype` and `param_dtype` say), and the table of the "
        "rotation is of float32 in place of bfloat16, as long as `max_position_embeddings`",
        _easydel,
    ),
    "litgpt": ("`lm_head` is computed with the embedding's own weight where it is tied", _litgpt),
}
