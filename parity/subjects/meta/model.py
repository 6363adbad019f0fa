"""Meta's published reference as a witness: the modules of llama-models, unmodified.

Each batch row runs by itself and without its pads, at its own positions and under its own cut of
the mask, so that agreement says that padding changes nothing. Features of rotated heads are
interleaved in Meta's layout, (0, 1), (2, 3), ...; weights are permuted into it, taps out of it.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, H head dim, D model dim.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import DTypeLike
from torch import Tensor, nn

from parity.options import lane_of
from parity.subjects.base import CheckpointLike
from parity.subjects.meta.package import (
    MODULES,
    canonical_name,
    check_config,
    interleave_pairs,
    reference_package,
    single_process,
    split_halves,
)
from parity.subjects.torch.arrays import Recorder, torch_dtype
from parity.subjects.torch.hooks import LayerRecorder, ThreadState, Views, hook_layer, hook_output
from parity.subjects.torch.weights import Weights, weights_for_model


class MetaModel:
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
    internal_dtype = "f32"

    def __init__(self, checkpoint: CheckpointLike, *, dtype: DTypeLike = "f32") -> None:
        self.dtype = lane_of(dtype)
        self.config = checkpoint.config
        self.compute = torch_dtype(dtype)
        check_config(self.config)
        self._package = reference_package()
        single_process()
        self._shared = weights_for_model(checkpoint, self.compute)  # kept for others to share
        self.model: Any = self._load(self._shared)
        self.present = ThreadState()
        self._hook()

    def freqs_cis(self, end: int) -> Tensor:
        """Return Meta's own table of rotations [end H/2], complex64, for positions below `end`."""
        c = self.config
        scaled = c.rope_scaling is not None
        return self._package.precompute_freqs_cis(c.head_dim, end, c.rope_theta, scaled)

    def watch(self, recorder: Recorder) -> LayerRecorder:
        """Return the mode that records a layer's inner taps in canonical layout."""
        queries: Views = (
            lambda x: split_halves(x.transpose(1, 2)),
            lambda x: interleave_pairs(x).transpose(1, 2),
        )
        return LayerRecorder(lambda: recorder, queries, keys=(split_halves, interleave_pairs))

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
        return interleave_pairs(rows_last).flatten(-2).T.contiguous()

    def _hook(self) -> None:
        H = self.config.head_dim
        plain: Views = (lambda x: x.unflatten(-1, (-1, H)), lambda x: x.flatten(-2))
        paired: Views = (
            lambda x: split_halves(x.unflatten(-1, (-1, H))),
            lambda x: interleave_pairs(x).flatten(-2),
        )
        views = {"q_proj": paired, "k_proj": paired, "v_proj": plain}
        hook_output(self.present, self.model.tok_embeddings, "embed")
        for index, layer in enumerate(self.model.layers):
            parts = {tap: layer.get_submodule(path) for tap, path in MODULES.items()}
            hook_layer(self.present, index, layer, parts, views)
        hook_output(self.present, self.model.norm, "norm")
