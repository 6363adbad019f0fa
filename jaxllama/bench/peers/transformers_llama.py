"""Hugging Face transformers: PyTorch is imported in here, by a process that runs nothing else.

A loop of our own writes greedily. It does less than transformers' `generate` around each step, some
milliseconds of Python, and so is the faster of the two.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from jaxllama.bench.measures import UNTIMED, Measure, prompt_of
from jaxllama.bench.peers.base import Run
from jaxllama.checkpoint import Checkpoint
from jaxllama.checkpoint.names import HEAD

_TORCH_NAMES = {"f32": "float32", "bf16": "bfloat16"}


class TransformersPeer:
    """transformers' Llama with a checkpoint's weights.

    Args:
        name: `eager`, `sdpa`, or `compiled`: a static cache and steps through `torch.compile`.
        checkpoint: opened.
        dtype: of weights, arithmetic and cache.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, dtype: str) -> None:
        import torch

        attention = "eager" if name == "eager" else "sdpa"
        self.model = _load(checkpoint, getattr(torch, _TORCH_NAMES[dtype]), attention)
        self.vocabulary = checkpoint.config.vocab_size
        self.static = name == "compiled"
        # A program for each batch size, as for a user who always calls with the same.
        self.step = torch.compile(self.model, dynamic=False) if self.static else self.model

    def prepare(self, measure: Measure) -> Run:
        """Return a greedy loop of as many steps."""
        import torch

        ids = torch.tensor(prompt_of(measure, self.vocabulary))

        @torch.inference_mode()
        def run() -> tuple[float, list[list[int]]]:
            cache = self._cache(measure)
            started = time.perf_counter()
            # Of the last token alone, as their generate asks: all logits are a fifth more work.
            found = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = found.logits[:, -1].argmax(-1, keepdim=True)
            rows = [token]
            if measure.kind == "prefill":
                tokens = token.tolist()  # waits
                return time.perf_counter() - started, tokens
            cache = found.past_key_values
            # As with ours, whose first timed token is the one after the first few.
            for step in range(1, UNTIMED + measure.new):
                if step == UNTIMED:
                    started = time.perf_counter()
                place = torch.tensor([measure.prompt + step - 1])
                found = self.step(
                    token, past_key_values=cache, use_cache=True, cache_position=place
                )
                token = found.logits[:, -1].argmax(-1, keepdim=True)
                rows.append(token)
            tokens = torch.cat(rows, 1).tolist()
            return time.perf_counter() - started, tokens

        return run

    def _cache(self, measure: Measure) -> Any:
        """Return an empty static cache, or None for the growing one that the model makes itself."""
        if not self.static:
            return None
        from transformers import StaticCache

        return StaticCache(config=self.model.config, max_cache_len=measure.context)


open_peer = TransformersPeer


def _load(checkpoint: Checkpoint, dtype: Any, attention: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if checkpoint.format == "hf":  # by its own reader, whose memory is looked at
        return LlamaForCausalLM.from_pretrained(
            str(checkpoint.path), dtype=dtype, attn_implementation=attention
        ).eval()
    config = LlamaConfig(**checkpoint.hf_config, attn_implementation=attention)
    model = LlamaForCausalLM(config).to(dtype).eval()
    names = [*checkpoint.tensors]
    if checkpoint.config.tie_word_embeddings and HEAD in model.state_dict():
        names = [name for name in names if name != HEAD]
    found = model.load_state_dict(
        {name: _to_torch(checkpoint.read(name)) for name in names}, strict=False
    )
    lacks = set(found.missing_keys) - ({HEAD} if checkpoint.config.tie_word_embeddings else set())
    if lacks or found.unexpected_keys:
        raise ValueError(f"transformers' names differ: {sorted(lacks)}, {found.unexpected_keys}")
    return model


def _to_torch(values: np.ndarray) -> Any:
    import torch

    if values.dtype.name == "bfloat16":  # which torch does not take from NumPy
        return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(values))
