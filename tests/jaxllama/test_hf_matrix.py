"""MHA, MQA, GQA x dtype x padding x tied x rope type, against transformers' Llama (eager).

Transformers is no float64 reference: its norms, softmax and angles are float32 even in a float64
model. What may differ is therefore measured, on transformers alone, and not picked by hand:

- float64, for meaning: how far transformers in float64 moves when its own float32 parts do, that
  is when its rotary table moves by one unit in the last place, or when the rest of the model is
  float32 too. Ours must lie within `LIMIT["float64"]` of that.
- float32 and bfloat16, for the quality of the arithmetic: both are compared with our float64 model,
  and ours may be off by `LIMIT` times what transformers is off by.

All per row of the batch, over its real tokens: rows differ in padding and in positions.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from small_llama import (
    CONFIG,
    LINEAR,
    LLAMA3,
    build,
    padded_rows,
    random_tokens,
    random_weights,
    visible,
)
from transformers import LlamaConfig as HfConfig
from transformers import LlamaForCausalLM

from jaxllama.config import LlamaConfig
from jaxllama.rope import inv_freq
from jaxllama.taps import Taps

KV_HEADS = {"MHA": 6, "GQA": 2, "MQA": 1}
ROPE = {"default": None, "linear": LINEAR, "llama3": LLAMA3}
CASES = list(itertools.product(KV_HEADS, ("tied", "untied"), ROPE))
TORCH = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
# Seen over all cases and rows: at most 0.46, 0.92 and 1.03.
LIMIT = {"float64": 1.0, "float32": 1.25, "bfloat16": 1.25}

T = 70
ROWS = ["unpadded", "left-padded", "right-padded", "far apart"]
TOKENS = random_tokens(CONFIG, len(ROWS), T)
_near, _valid = padded_rows(T, [0, 9, 0], [T, T, T - 13])
# The last row's tokens lie 173 apart, up to position 12 000: within 70 tokens the slow frequencies
# that scaling changes have hardly turned.
_far, _all = padded_rows(T, [0], [T], stride=173)
POSITIONS, VALID = np.concatenate([_near, _far]), np.concatenate([_valid, _all])
MASK = visible(POSITIONS, VALID)


def case_config(heads: str, tied: str, rope: str) -> LlamaConfig:
    return CONFIG.replace(
        num_hidden_layers=3,
        num_key_value_heads=KV_HEADS[heads],
        tie_word_embeddings=tied == "tied",
        rope_scaling=ROPE[rope],
    )


@pytest.fixture(scope="module", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Matrices this small only make threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Ours


@functools.cache
def program(heads: str, tied: str, dtype: str) -> Any:
    """Return the compiled model, which takes weights and a rotary table.

    The rope types differ in that table alone, so that one program serves for all of them.
    """
    graph, _ = nnx.split(build(case_config(heads, tied, "default"), dtype))

    @jax.jit
    def run(state: Any, table: Any, positions: Any, mask: Any) -> jax.Array:
        model, taps = nnx.merge(graph, state), Taps({"rope.inv_freq": table})
        return model(jnp.asarray(TOKENS), positions=positions, mask=mask, tap=taps)[0]

    return run


def ours(case: tuple[str, str, str], dtype: str, **changes: Any) -> np.ndarray:
    config = case_config(*case)
    state = nnx.state(build(config, dtype))
    given = {"table": inv_freq(config), "positions": POSITIONS, "mask": MASK} | changes
    arrays = {name: jnp.asarray(value) for name, value in given.items()}
    return np.asarray(program(*case[:2], dtype)(state, **arrays), np.float64)


# Theirs


def hf_model(config: LlamaConfig, dtype: str) -> Any:
    settings = HfConfig(**config.to_hf(), attn_implementation="eager")
    model = LlamaForCausalLM(settings)
    weights = {k: torch.tensor(w.astype(np.float32)) for k, w in random_weights(config).items()}
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    table = model.model.rotary_emb.inv_freq.clone()
    model = model.to(TORCH[dtype]).eval()
    # `.to(bfloat16)` rounds the rotary table as well, which loading a checkpoint does not.
    model.model.rotary_emb.inv_freq = table
    return model


def run_hf(model: Any) -> np.ndarray:
    dtype = model.lm_head.weight.dtype
    bias = torch.zeros((len(ROWS), 1, T, T), dtype=dtype)
    bias.masked_fill_(~torch.tensor(MASK)[:, None], torch.finfo(dtype).min)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(TOKENS, dtype=torch.long),
            position_ids=torch.tensor(POSITIONS, dtype=torch.long),
            attention_mask=bias,
            use_cache=False,
        )
    return out.logits.double().numpy()


def table_moved(model: Any) -> Any:
    """Move every rotary frequency by one unit in the last place of float32, up or down."""
    table = model.model.rotary_emb.inv_freq.float().numpy()
    ways = np.where(np.arange(len(table)) % 2 == 0, np.inf, -np.inf).astype(np.float32)
    model.model.rotary_emb.inv_freq = torch.tensor(np.nextafter(table, ways))
    return model


def row_errors(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the relative error of each row, over its real tokens."""
    off = np.linalg.norm(found - expected, axis=-1)
    size = np.linalg.norm(expected, axis=-1)
    return np.sqrt((off**2 * VALID).sum(1) / (size**2 * VALID).sum(1))


@functools.cache
def hf_float64(case: tuple[str, str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Return transformers' float64 logits and how far each row moves with its float32 parts."""
    config = case_config(*case)
    exact = run_hf(hf_model(config, "float64"))
    moved = run_hf(table_moved(hf_model(config, "float64")))
    single = run_hf(hf_model(config, "float32"))
    return exact, np.maximum(row_errors(moved, exact), row_errors(single, exact))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_equals_transformers_within_its_own_noise(case: tuple[str, str, str]) -> None:
    gold = ours(case, "float64")
    exact, noise = hf_float64(case)
    assert noise[:3].max() < 1e-5  # the measure itself is no loose one
    assert (row_errors(gold, exact) <= LIMIT["float64"] * noise).all()
    for dtype in ("float32", "bfloat16"):
        theirs = row_errors(run_hf(hf_model(case_config(*case), dtype)), gold)
        assert (row_errors(ours(case, dtype), gold) <= LIMIT[dtype] * theirs).all(), dtype


GQA = ("GQA", "untied", "llama3")


def wrong_table(**changes: Any) -> dict[str, Any]:
    return {"table": inv_freq(case_config(*GQA).replace(**changes))}


SHIFTED = np.where(VALID, POSITIONS * 2, 0)
WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    # What is wrong, and in which rows it must show.
    "theta": (wrong_table(rope_theta=5.01e5), ROWS),
    "no rope scaling": (wrong_table(rope_scaling=None), ["far apart"]),
    "pads visible": (
        {"mask": visible(POSITIONS, np.ones_like(VALID))},
        ["left-padded", "right-padded"],
    ),
    "positions": ({"positions": SHIFTED}, ROWS),
    "not causal": ({"mask": np.broadcast_to(VALID[:, None], MASK.shape)}, ROWS),
}


@pytest.mark.parametrize("fault", WRONG)
def test_the_comparison_would_see(fault: str) -> None:
    """Negative controls: each fault is far outside the noise, in the rows it belongs to."""
    changes, rows = WRONG[fault]
    exact, noise = hf_float64(GQA)
    over = row_errors(ours(GQA, "float64", **changes), exact) / noise
    for row in rows:
        assert over[ROWS.index(row)] > 10 * LIMIT["float64"], (row, over)


def test_the_comparison_would_see_a_wrong_head_map() -> None:
    exact, noise = hf_float64(GQA)
    state = nnx.state(build(case_config(*GQA), "float64"))
    attention = state["layers"]["self_attn"]
    for name in ("k_proj", "v_proj"):
        # The second kv head first: as if query head n used kv head n % K, or the like.
        weight = attention[name]["weight"]
        attention[name]["weight"] = weight.replace(jnp.roll(weight[...], CONFIG.head_dim, axis=1))
    logits = program(*GQA[:2], "float64")(
        state, *(jnp.asarray(x) for x in (inv_freq(case_config(*GQA)), POSITIONS, MASK))
    )
    assert (row_errors(np.asarray(logits), exact) > 1000 * noise).all()


@pytest.mark.parametrize("rope", ROPE)
def test_a_given_table_is_what_the_model_makes_itself(rope: str) -> None:
    """The program above is shared by the rope types: this is the model with its own table."""
    case = ("GQA", "untied", rope)
    model = build(case_config(*case), "float64")
    run = jax.jit(lambda model, *given: model(given[0], positions=given[1], mask=given[2])[0])
    logits = run(model, *(jnp.asarray(x) for x in (TOKENS, POSITIONS, MASK)))
    np.testing.assert_allclose(logits, ours(case, "float64"), atol=1e-12)
