"""Hugging Face transformers as a witness: its own Llama, watched and never recomputed.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor, nn

from jaxllama.errors import CheckpointError, InputError, join_problems
from parity.inputs import Inputs, visible_keys
from parity.options import lane_of
from parity.subjects.base import CheckpointLike, GeneratedRun, chunk_ranges
from parity.subjects.threaded import StageExchange, ThreadedRun
from parity.subjects.torch.arrays import to_numpy, to_torch, torch_dtype
from parity.subjects.torch.hooks import (
    HEADS_INSIDE,
    LayerRecorder,
    ThreadState,
    Views,
    hook_layer,
    hook_output,
)
from parity.subjects.torch.weights import weights_for_model
from parity.taps import GRAD_TAPS, LAYER_TAPS, PARAMETER_GRADIENTS

try:
    from transformers import DynamicCache, LlamaForCausalLM
    from transformers import LlamaConfig as HFLlamaConfig
    from transformers.utils import logging
except ModuleNotFoundError as error:
    raise InputError(
        f"Hugging Face as a witness needs the package {error.name}, which is not installed: "
        "pip install 'jaxllama[parity]'"
    ) from error

GRADIENTS_SHOWN = PARAMETER_GRADIENTS | {"loss", "grad.layers.input"}


class HFLlama:
    """`transformers.LlamaForCausalLM` with eager attention.

    A Hugging Face directory is loaded by transformers itself, so that loading is witnessed too.
    Norms, rotations and softmax work in float32 whatever the dtype: in float64 it is a witness of
    meaning, with float32's noise.

    Args:
        checkpoint: where the weights come from.
        dtype: `f64`, `f32` or `bf16`.

    Raises:
        CheckpointError: transformers finds weights missing, unexpected or of another shape.
    """

    name = "hf"
    # Inside a layer only the forward pass can be watched.
    absent: frozenset[str] = frozenset(GRAD_TAPS) - GRADIENTS_SHOWN
    can_force = True
    internal_dtype = "f32"

    def __init__(self, checkpoint: CheckpointLike, *, dtype: DTypeLike = "f32") -> None:
        self.dtype = lane_of(dtype)
        self.config = checkpoint.config
        self.model = load(checkpoint, torch_dtype(dtype))
        self._shared = weights_for_model(checkpoint, torch_dtype(dtype))  # kept for others to share
        self._shared.share(self.model)
        self._present = ThreadState()
        self._hook()

    def start(self, inputs: Inputs) -> ThreadedRun:
        """Begin a forward pass; see `parity.subjects.base.Subject`."""
        whole = [(0, inputs.tokens.shape[1])]
        return self._run(inputs, whole, keep=False)

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> ThreadedRun:
        """Feed the inputs through a `DynamicCache`; see `parity.subjects.base.CachedSubject`."""
        return self._run(inputs, chunk_ranges(inputs, chunks), keep=True)

    def start_grad(self, inputs: Inputs) -> GeneratedRun:
        """Begin a backward pass; see `parity.subjects.base.DifferentiableSubject`."""
        from parity.subjects.hf.grad import by_stage

        mask = attention_mask(inputs, 0, inputs.tokens.shape[1], self.model.dtype)
        return GeneratedRun(by_stage(self.model, inputs, mask))

    def _run(self, inputs: Inputs, ranges: list[tuple[int, int]], keep: bool) -> ThreadedRun:
        def forward(stages: StageExchange) -> None:
            cache = WatchedCache(self.model.config, stages, keep)
            watch = LayerRecorder(lambda: stages.tap)
            self._present.stages, self._present.watch = stages, watch
            for start, stop in ranges:
                stages.begin()
                with torch.no_grad(), watch:
                    self.model(
                        to_torch(inputs.tokens[:, start:stop].astype(np.int64)),
                        attention_mask=attention_mask(inputs, start, stop, self.model.dtype),
                        position_ids=to_torch(inputs.positions[:, start:stop].astype(np.int64)),
                        past_key_values=cache,
                        use_cache=True,
                    )
                stages.hand_over()

        return ThreadedRun(forward, self.config.num_hidden_layers, len(ranges))

    def _hook(self) -> None:
        present, model = self._present, self.model.model
        split: Views = (
            lambda x: x.unflatten(-1, (-1, self.config.head_dim)),
            lambda x: x.flatten(-2),
        )
        hook_output(present, model.embed_tokens, "embed")
        model.rotary_emb.register_forward_pre_hook(self._on_rotary, with_kwargs=True)
        for index, layer in enumerate(model.layers):
            layer.register_forward_pre_hook(self._before_layer(index), with_kwargs=True)
            parts = {
                name: getattr(owner, name)
                for owner in (layer, layer.self_attn, layer.mlp)
                for name in LAYER_TAPS
                if hasattr(owner, name)
            }
            hook_layer(
                present, index, layer, parts, dict.fromkeys(("q_proj", "k_proj", "v_proj"), split)
            )
        model.norm.register_forward_pre_hook(self._before_norm)
        hook_output(present, model.norm, "norm")
        hook_output(present, self.model.lm_head, "logits")

    def _on_rotary(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if self._present.stages is not None:
            values = self._present.stages.tap.values
            assert isinstance(module.inv_freq, Tensor)
            values["rope.inv_freq"] = to_numpy(module.inv_freq)
            values["positions"] = to_numpy(kwargs["position_ids"].to(torch.int32))

    def _before_layer(self, index: int) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            stages = self._present.stages
            if stages is not None:
                if index == 0:
                    stages.tap.values["mask"] = mask_as_bool(kwargs["attention_mask"], len(args[0]))
                stages.turn()

        return hook

    def _before_norm(self, module: nn.Module, args: Any) -> None:
        if self._present.stages is not None:
            self._present.stages.turn()


class WatchedCache(DynamicCache):
    """Hugging Face's cache, which is handed every layer's rotated keys, and shows them.

    Args:
        config: the model's.
        stages: where to record.
        keep: whether it is a cache at all, or only passes through what it is handed.
    """

    def __init__(self, config: Any, stages: StageExchange, keep: bool) -> None:
        super().__init__(config=config)
        self._stages = stages
        self._keep = keep

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        tap = self._stages.tap
        keys = tap(f"layers.{layer_idx}.k_rope", key_states, *HEADS_INSIDE)
        if not self._keep:
            return keys, value_states
        held = super().update(keys, value_states, layer_idx, *args, **kwargs)
        for name, states in zip("kv", held, strict=True):
            tap(f"cache.{layer_idx}.{name}", states, *HEADS_INSIDE)
        return held


def attention_mask(inputs: Inputs, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Return what to tell transformers of a call's mask.

    Where the mask is causality and padding, these are the valid columns [B S] and transformers
    builds its own mask. Its usual interface can say no more, so other masks go in whole, as an
    additive [B 1 T S].

    So does left padding in float64: transformers fills with the dtype's lowest value but takes the
    softmax in float32, where float64's is -inf, a left pad's own row becomes NaN, and by way of
    its keys every real token of the next layer too.
    """
    plain = np.array_equal(inputs.mask, visible_keys(inputs.valid))
    if plain and (dtype != torch.float64 or inputs.valid[:, 0].all()):
        return to_torch(inputs.valid[:, :stop].astype(np.int64))
    hidden = to_torch(~inputs.mask[:, None, start:stop, :stop])
    fill = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, fill)


def mask_as_bool(mask: Tensor, batch: int) -> np.ndarray:
    """Return as booleans [B T S] the mask that transformers' layers got: bool, or 0 and lowest."""
    if mask.dtype != torch.bool:
        mask = mask > -1e30  # the fills are float32's lowest or below it
    return to_numpy(mask[:, 0].expand(batch, -1, -1))


def load(checkpoint: CheckpointLike, dtype: torch.dtype) -> LlamaForCausalLM:
    """Load transformers' model, from the directory itself where it is one of its own."""
    options: dict[str, Any] = {"attn_implementation": "eager", "dtype": dtype}
    source: str | None = None
    if checkpoint.format == "hf" and checkpoint.path is not None:
        directory = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        source, options["local_files_only"] = str(directory), True
    else:
        options["config"] = HFLlamaConfig(**checkpoint.hf_config)
        options["state_dict"] = {n: to_torch(checkpoint.read(n)) for n in checkpoint.tensors}
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a report owns the terminal
    try:
        model, info = LlamaForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    finally:
        if bars:
            logging.enable_progress_bar()
    _complete(checkpoint, info)
    return model.eval()


def _complete(checkpoint: CheckpointLike, info: dict[str, Any]) -> None:
    """Raise for what transformers only logs: weights it made up, ignored or could not fit."""
    tied = {"lm_head.weight"} if checkpoint.config.tie_word_embeddings else set()
    problems = [f"{name}: not in the checkpoint" for name in set(info["missing_keys"]) - tied]
    problems += [f"{name}: not in the model" for name in set(info["unexpected_keys"]) - tied]
    problems += [f"{entry[0]}: does not fit" for entry in info["mismatched_keys"]]
    if problems:
        label = checkpoint.path or f"{checkpoint.format} checkpoint"
        title = f"{label}, loaded by transformers, which takes names as they are stored"
        raise CheckpointError(join_problems(title, sorted(problems)))
