"""Edits of jaxllama's own source, of the kinds that mutants have left open, are explained."""

from __future__ import annotations

import pytest
from planting import planted
from witnesses import small

from parity.runner import run

CHECKPOINT = small()
WRITTEN = "return _scatter(held, places, new)"
ROWS = "jnp.arange(len(slots), dtype=jnp.int32)[:, None]"
SLOTS = "slots = jnp.where(valid & (slots < cache.capacity), slots, cache.capacity)"
HELD_POSITIONS = "cache.positions.at[rows, slots]"
HIDDEN = "jnp.where(visible, scores, jnp.finfo(wide).min)"
QUERIES = "q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)"
RESERVED_ROWS = "rows = jnp.arange(len(cache.lengths), dtype=jnp.int32)[:, None]"


@pytest.mark.parametrize(
    ("module", "before", "after", "said"),
    [
        (
            "jaxllama.cache",
            WRITTEN,
            f'return held.at[layer, {ROWS} * 2, slots].set(new, mode="drop")',
            "row is multiplied by 2",
        ),
        ("jaxllama.cache", RESERVED_ROWS, f"{RESERVED_ROWS} * 2", "row is multiplied by 2"),
        (
            "jaxllama.cache",
            SLOTS,
            "slots = jnp.where(valid & (slots < cache.capacity), cache.capacity, slots)",
            "slot and capacity are exchanged in at",
        ),
        (
            "jaxllama.cache",
            HELD_POSITIONS,
            "cache.positions.at[positions, slots]",
            "held_position reads c_position in place of row",
        ),
        ("jaxllama.cache", WRITTEN, f"{WRITTEN} * 2", "held is multiplied by 2"),
        (
            "jaxllama.masks.specs",
            "cells.q_position - self.window_keys",
            "(cells.q_position - self.window_keys) * 2",
            "edge is multiplied by 2",
        ),
        (
            "jaxllama.config",
            "(1 - keep) / self.factor + keep",
            "np.where(keep > 0, (1 - keep) / self.factor + keep, 1e-300)",
            "slow frequencies scaled by",
        ),
        (
            "jaxllama.attention.reference",
            HIDDEN,
            "jnp.where(visible, jnp.finfo(wide).min, scores)",
            "hidden is hiding of what is visible, by a finite number",
        ),
        (
            "jaxllama.attention.reference",
            QUERIES,
            QUERIES.replace("3, 1, 4", "3, 4, 1"),
            "queries is laid out as BKGHT and read as BKGTH",
        ),
    ],
)
def test_an_edit_of_the_source_is_explained(
    module: str, before: str, after: str, said: str
) -> None:
    modes = "decode" if module == "jaxllama.cache" else "free"
    name = "windowed" if "window" in before else "mixed_lengths"
    with planted(module, before, after):
        found = run.run(CHECKPOINT, dtypes="f64", modes=modes, scenarios=name, length=13).cause
    assert found is not None and found.confirmed
    # Where these rows do not tell it from another, that one is named, and it beside it.
    assert any(said in line for line in (found.summary, *found.evidence))


def test_a_number_that_goes_with_the_length_is_no_constant() -> None:
    """Scores are multiplied by how many queries there are: 61 here, and fewer of fewer."""
    with planted(
        "jaxllama.attention.backends",
        "attend_reference(q, k, v, dense, scale, tap)",
        "attend_reference(q, k, v, dense, q.shape[1], tap)",
    ):
        found = run.run(CHECKPOINT, dtypes="f64", modes="free", scenarios="causal", length=61).cause
    assert found is not None and not found.confirmed
    assert any("causal of 30 tokens" in line for line in (found.summary, *found.evidence))
