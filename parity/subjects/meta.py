"""Meta's published reference as a witness: the modules of llama-models, unmodified.

Each batch row runs by itself and without its pads, at its own positions and under its own cut of
the mask, so that agreement says that padding changes nothing. Features of rotated heads are
interleaved in Meta's layout, (0, 1), (2, 3), ...; weights are permuted into it, taps out of it.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, H head dim, D model dim.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from jaxllama.config import LlamaConfig, RopeScaling
from jaxllama.errors import InputError, join_problems
from parity.inputs import Inputs
from parity.subjects.base import CheckpointLike, Run
from parity.subjects.observe import LayerWatch, Present, Views, hook_layer, hook_output
from parity.subjects.torch_arrays import Recorder, torch_dtype
from parity.subjects.torch_weights import Weights, whole

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


def half_split(x: Tensor) -> Tensor:
    """Bring a head's features (last axis) from interleaved pairs to half-split ones."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def interleaved(x: Tensor) -> Tensor:
    """Undo `half_split`."""
    return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


class MetaLlama:
    """`llama_models.llama3.model.Transformer`, one process, one row at a time.

    Norms, rotations and softmax work in float32 and the rotation's angles are complex64 whatever
    the dtype: in float64 it is a witness of meaning, with float32's noise.

    Args:
        checkpoint: where the weights come from.
        dtype: `f64`, `f32` or `bf16`.

    Raises:
        InputError: the packages are missing, torch.distributed runs with several processes, or
            the configuration is one that this implementation cannot express.
    """

    name = "meta"
    absent: frozenset[str] = frozenset()
    can_force = True
    internal_dtype = "f32"

    def __init__(self, checkpoint: CheckpointLike, *, dtype: str = "f32") -> None:
        self.dtype = dtype
        self.config = checkpoint.config
        self.compute = torch_dtype(dtype)
        check_config(self.config)
        self._package = reference_package()
        single_process()
        self._shared = whole(checkpoint, self.compute)  # kept for others to share
        self.model: Any = self._load(self._shared)
        self.present = Present()
        self._hook()

    def start(self, inputs: Inputs) -> Run:
        """Begin a forward pass; see `parity.subjects.base.Subject`."""
        from parity.subjects.meta_run import MetaRun  # which imports this module

        return MetaRun(self, inputs)

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> Run:
        """Feed the inputs through its own caches; see `parity.subjects.base.CachedSubject`."""
        from parity.subjects.meta_run import MetaRun

        return MetaRun(self, inputs, chunks)

    def freqs_cis(self, end: int) -> Tensor:
        """Return Meta's own table of rotations [end H/2], complex64, for positions below `end`."""
        c = self.config
        scaled = c.rope_scaling is not None
        return self._package.precompute_freqs_cis(c.head_dim, end, c.rope_theta, scaled)

    def watch(self, recorder: Recorder) -> LayerWatch:
        """Return the mode that records a layer's inner taps in canonical layout."""
        queries: Views = (
            lambda x: half_split(x.transpose(1, 2)),
            lambda x: interleaved(x).transpose(1, 2),
        )
        return LayerWatch(lambda: recorder, queries, keys=(half_split, interleaved))

    def _load(self, weights: Weights) -> nn.Module:
        c = self.config
        args = self._package.ModelArgs(
            dim=c.hidden_size,
            n_layers=c.num_hidden_layers,
            n_heads=c.num_attention_heads,
            n_kv_heads=c.num_key_value_heads,
            vocab_size=c.vocab_size,
            # It takes the MLP's width as the next multiple of one number: that of the width above
            # 1 is the width.
            multiple_of=c.intermediate_size,
            ffn_dim_multiplier=1.5 / int(2 * 4 * c.hidden_size / 3),
            norm_eps=c.rms_norm_eps,
            rope_theta=c.rope_theta,
            use_scaled_rope=c.rope_scaling is not None,
            # Runs bring caches of the size they need.
            max_batch_size=1,
            max_seq_len=1,
        )
        model: nn.Module = self._package.Transformer(args)
        stored: dict[str, Tensor] = {}  # so that a tied head shares the embedding's memory
        state = {}
        for name in model.state_dict():
            source = canonical_name(name, c.tie_word_embeddings)
            if source not in stored:
                stored[source] = self._to_layout(source, weights[source])
            state[name] = stored[source]
        model.load_state_dict(state, assign=True)
        return model.eval()

    def _to_layout(self, name: str, weight: Tensor) -> Tensor:
        if not name.endswith(("q_proj.weight", "k_proj.weight")):
            return weight
        rows_last = weight.T.unflatten(-1, (-1, self.config.head_dim))
        return interleaved(rows_last).flatten(-2).T.contiguous()

    def _hook(self) -> None:
        H = self.config.head_dim
        plain: Views = (lambda x: x.unflatten(-1, (-1, H)), lambda x: x.flatten(-2))
        paired: Views = (
            lambda x: half_split(x.unflatten(-1, (-1, H))),
            lambda x: interleaved(x).flatten(-2),
        )
        views = {"q_proj": paired, "k_proj": paired, "v_proj": plain}
        hook_output(self.present, self.model.tok_embeddings, "embed")
        for index, layer in enumerate(self.model.layers):
            parts = {tap: layer.get_submodule(path) for tap, path in MODULES.items()}
            hook_layer(self.present, index, layer, parts, views)
        hook_output(self.present, self.model.norm, "norm")


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
        title = "Meta's reference cannot express this model (take another --reference)"
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
