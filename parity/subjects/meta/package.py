"""The package of Meta's model: its layout and names, and what it can express."""

from __future__ import annotations

import contextlib
import io
from types import ModuleType
from typing import Any

import torch.distributed as dist
from torch import Tensor

from jaxllama.config import LlamaConfig, RopeScaling
from jaxllama.errors import InputError, argument, join_problems

# The one scaling it knows, hard-coded in its `apply_scaling`.
ITS_SCALING = RopeScaling(
    kind="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)

# Tap to module, within a layer.
MODULES = {
    "input_layernorm": "attention_norm",
    "q_proj": "attention.wq",
    "k_proj": "attention.wk",
    "v_proj": "attention.wv",
    "o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "feed_forward.w1",
    "up_proj": "feed_forward.w3",
    "down_proj": "feed_forward.w2",
}


def split_halves(x: Tensor) -> Tensor:
    """Bring a head's features (last axis) from interleaved pairs to half-split ones."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def interleave_pairs(x: Tensor) -> Tensor:
    """Undo `split_halves`."""
    return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def canonical_name(name: str, tied: bool) -> str:
    """Return the Hugging Face name of one of Meta's weights."""
    outside = {
        "tok_embeddings.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "output.weight": "model.embed_tokens.weight" if tied else "lm_head.weight",
    }
    if name in outside:
        return outside[name]
    _, index, module = name.removesuffix(".weight").split(".", 2)
    tap = next(tap for tap, path in MODULES.items() if path == module)
    owner = {"attention": "self_attn.", "feed_forward": "mlp."}.get(module.split(".")[0], "")
    return f"model.layers.{index}.{owner}{tap}.weight"


def check_config(config: LlamaConfig) -> None:
    """Raise unless Meta's implementation can express the configuration.

    Raises:
        InputError: naming every field it cannot.
    """
    problems = []
    D, N, H = config.hidden_size, config.num_attention_heads, config.head_dim
    if N * H != D:
        problems.append(f"head_dim {H}: it has hidden_size / num_attention_heads = {D}/{N} alone")
    if config.rope_scaling not in (None, ITS_SCALING):
        problems.append(f"rope_scaling {config.rope_scaling}: it has none or {ITS_SCALING} alone")
    if problems:
        title = f"Meta's reference cannot express this model (take another {argument('reference')})"
        raise InputError(join_problems(title, problems))


def reference_package() -> ModuleType | Any:
    """Return `llama_models.llama3.model`.

    Raises:
        InputError: it, or fairscale below it, is not installed.
    """
    try:
        import fairscale.nn.model_parallel.initialize  # noqa: F401
        from llama_models.llama3 import model
    except ModuleNotFoundError as error:
        raise InputError(
            f"Meta's reference needs the package {error.name}, which is not installed: "
            "pip install 'jaxllama[meta]' (fairscale and llama-models==0.3.0)"
        ) from error
    return model


def single_process() -> None:
    """Make this process its own, only member of torch.distributed; Meta's layers ask for it.

    Raises:
        InputError: torch.distributed already runs with other processes.
    """
    import fairscale.nn.model_parallel.initialize as parallel

    if not dist.is_initialized():
        # A store in memory: no port is opened and no file written.
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if dist.get_world_size() != 1:
        raise InputError(
            f"torch.distributed runs with {dist.get_world_size()} processes; Meta's reference as a "
            "witness needs a process of its own"
        )
    if not parallel.model_parallel_is_initialized():
        with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
            parallel.initialize_model_parallel(1)
