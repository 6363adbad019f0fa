"""The small checkpoints that faults are injected into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np

from jaxllama.checkpoint import Checkpoint, open_checkpoint, tiny
from jaxllama.config import RopeScaling

LINEAR = RopeScaling(kind="linear", factor=2.5)
LAYERS = 3
# Of the K terms of a product, what sign the k-th has.
SIGNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "halves": lambda k: np.where(2 * k < len(k), 1.0, -1.0),
    "smooth": np.ones_like,
    "alternating": lambda k: np.where(k % 2, -1.0, 1.0),
}


@cache
def checkpoint(name: str) -> Checkpoint:
    """Return a checkpoint by name.

    `base` has Llama 3.1's form with N*H != D; `square` D = N*H, where a transposed weight fits;
    `linear` and `plain` other rope scalings; `tied` a tied head; `mqa` one kv head; `seed8` and
    `seed9` other weights; `wide` a residual stream long enough for sums in bfloat16 to go wrong;
    `peaked` attention on few keys; `near_tied` pairs of vocabulary entries that all but tie;
    `one_layer` is for long inputs. In `massive` one input of a product is a thousand times the
    others; in `halves`, `smooth` and `alternating` a product's terms hang together by position.
    `smollm2` is the trained model. `tied@101` has the form of `tied` and weights of seed 101.
    """
    if name == "smollm2":
        return open_checkpoint("smollm2")
    if name == "peaked":
        return _reweighted(checkpoint("base"), _peaked)
    if name == "near_tied":
        return _reweighted(checkpoint("base"), _near_tied)
    form, at, seed = name.partition("@")
    if form == "massive":
        return _reweighted(checkpoint(f"broad{at}{seed}"), _massive)
    if form in SIGNS:
        return _reweighted(checkpoint(f"broad{at}{seed}"), partial(_by_position, SIGNS[form]))
    forms: dict[str, dict[str, Any]] = {
        "base": {"hidden_size": 90},
        "square": {},
        "linear": {"hidden_size": 90, "rope_scaling": LINEAR},
        "plain": {"hidden_size": 90, "rope_scaling": None},
        "tied": {"hidden_size": 90, "tie_word_embeddings": True},
        "mqa": {"hidden_size": 90, "num_key_value_heads": 1},
        "seed8": {"hidden_size": 90},
        "seed9": {"hidden_size": 90},
        "wide": {"hidden_size": 384, "num_hidden_layers": 2, "intermediate_size": 40},
        "broad": {"hidden_size": 210, "num_hidden_layers": 1, "intermediate_size": 1530},
        "one_layer": {"hidden_size": 90, "num_hidden_layers": 1, "num_attention_heads": 4},
    }
    if at:
        return tiny(seed=int(seed), **({"num_hidden_layers": LAYERS} | forms[form]))
    return tiny(seed=list(forms).index(name) + 1, **({"num_hidden_layers": LAYERS} | forms[name]))


def _reweighted(source: Checkpoint, change: Callable[[str, np.ndarray], np.ndarray]) -> Checkpoint:
    """Return a checkpoint whose weights are functions of another's."""
    weights = {name: change(name, source.read(name)) for name in source.tensors}
    return replace(source, reader=weights.__getitem__)


def _peaked(name: str, weight: np.ndarray) -> np.ndarray:
    # Scores grow fourfold twice over: float32 weights of most keys underflow.
    return 4 * weight if name.endswith(("q_proj.weight", "k_proj.weight")) else weight


def _near_tied(name: str, weight: np.ndarray) -> np.ndarray:
    if name != "lm_head.weight":
        return weight
    pairs = weight.copy()
    pairs[1::2] = pairs[0::2] * np.float32(1 + 2**-22)
    return pairs


def _massive(name: str, weight: np.ndarray) -> np.ndarray:
    """Make one feature of the residual stream, and one of the MLP, a thousand times the others."""
    large = weight.copy()
    if "embed_tokens" in name:
        large[:, 1] *= 1000
    if name.endswith(("gate_proj.weight", "up_proj.weight")):
        large[2] *= 30  # their product 900
    return large


def _by_position(
    sign: Callable[[np.ndarray], np.ndarray], name: str, weight: np.ndarray
) -> np.ndarray:
    """Return weights that vary smoothly about an offset, a tenth of noise upon it.

    The residual stream is positive, and so is what the MLP's second product sums; so the signs of
    a product's terms are those of its weights.
    """
    size = weight.shape[-1]
    k = np.arange(size, dtype=np.float64)
    noise = 0.1 * weight / weight.std()
    offset = 1 + 0.3 * np.sin(4 * np.pi * k / size)
    if weight.ndim == 1:
        return offset.astype(np.float32)
    if "embed_tokens" in name:
        return (1 + noise).astype(np.float32)
    positive = name.endswith(("gate_proj.weight", "up_proj.weight"))
    signs = 1.0 if positive else sign(k)
    return (signs * (offset + noise) / size).astype(np.float32)
