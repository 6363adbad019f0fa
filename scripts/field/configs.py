"""The checkpoints that every peer is run on."""

from __future__ import annotations

from dataclasses import replace

from jaxllama.checkpoint import Checkpoint, open_checkpoint
from jaxllama.checkpoint.samples import TINY, tiny

_SCALING = TINY.rope_scaling
assert _SCALING is not None
# Shapes of Llama's releases in small; three layers, random weights of a large variance.
_SMALL = {
    "llama-3": {"rope_scaling": None},
    "llama-3.1": {},
    "llama-3.2": {"tie_word_embeddings": True, "rope_scaling": replace(_SCALING, factor=32.0)},
    "llama-3.3": {"num_attention_heads": 12, "num_key_value_heads": 3, "head_dim": 8},
}
WHAT = {
    "llama-3": "theta 5e5, no scaling",
    "llama-3.1": "theta 5e5, llama3 scaling 8/1/4/8192",
    "llama-3.2": "tied head, llama3 scaling 32/1/4/8192",
    "llama-3.3": "as 3.1, other heads: 12 to 3",
    "smollm2": "trained weights: SmolLM2-135M, 30 layers, tied, theta 1e5, no scaling",
}


def checkpoint(name: str) -> Checkpoint:
    """Return a checkpoint by its name in `WHAT`."""
    if name == "smollm2":
        return open_checkpoint(name)
    return tiny(num_hidden_layers=3, **_SMALL[name])
