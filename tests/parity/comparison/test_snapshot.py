"""What a pass keeps for pictures: folded by the largest value, bounded, faithful about zeros."""

from __future__ import annotations

import numpy as np
import pytest

from parity.comparison.attention_image import (
    HIDDEN,
    LEAKED,
    LOST,
    VISIBLE,
    decode_weight,
    encode_weights,
    fold_cells,
    fold_weights,
)
from parity.comparison.reference import ReferenceTap
from parity.comparison.snapshot import MOST_COLUMNS, SMALL, PassSnapshot

B, N, T, LAYERS = 2, 3, 5, 4
VALID = np.array([[True] * 5, [False, True, True, True, True]])
MASK = np.tril(np.ones((T, T), bool)) & VALID[:, :, None] & VALID[:, None, :]


def snapshot(columns: int = T, *, cached: bool = False) -> PassSnapshot:
    return PassSnapshot("f64", "causal", LAYERS + 2, MASK, B, columns, cached)


def probs() -> np.ndarray:
    scores = np.random.default_rng(1).standard_normal((B, N, T, T))
    raw = np.where(MASK[:, None], np.exp(scores), 0.0)
    return raw / np.maximum(raw.sum(-1, keepdims=True), 1e-300)


def look(shown: PassSnapshot, layer: int, maps: np.ndarray, *, failed: bool = False) -> None:
    name = f"layers.{layer}.attn_probs"
    reference = ReferenceTap(name, probs(), VALID, MASK)
    shown.add_attention({name: reference}, {name: maps}, failed)


def test_a_grid_keeps_the_worst_operator_of_each_token() -> None:
    shown, live = snapshot(), np.ones((B, T), bool)
    quiet, loud = np.ones((B, T)), np.zeros((B, T))
    loud[1, 3] = 7.0
    shown.add_errors("free", "layers.2.q_proj", quiet, live, 0)
    shown.add_errors("free", "layers.2.mlp_act", loud, live, 0)
    grid = shown.grids["free"]
    assert grid.rho.shape == (LAYERS + 2, B, T)
    assert grid.rho[3, 1, 3] == 7.0 and grid.rho[3, 0, 0] == 1.0
    assert grid.names[grid.tap[3, 1, 3]] == "mlp_act" and grid.names[grid.tap[3, 0, 0]] == "q_proj"
    assert np.isnan(grid.rho[[0, 1, 2, 4, 5]]).all()


def test_pads_and_what_has_no_tokens_stay_empty() -> None:
    shown = snapshot()
    shown.add_errors("free", "embed", np.ones((B, T)), VALID, 0)
    shown.add_errors("free", "rope.inv_freq", np.ones(3), np.ones(3, bool), 0)
    shown.add_errors("free", "positions", np.ones((B, T)), VALID, 0)
    grid = shown.grids["free"]
    assert np.isnan(grid.rho[0, 1, 0]) and grid.rho[0, 1, 1] == 1.0 and grid.names == ["embed"]


def test_heads_are_folded_by_the_largest_and_no_number_is_infinite() -> None:
    shown, rho = snapshot(), np.zeros((B, N, T))
    rho[0, 2, 1], rho[0, 0, 4] = 5.0, np.nan
    shown.add_errors("free", "layers.0.attn_probs", rho, np.ones(rho.shape, bool), 0)
    grid = shown.grids["free"].rho[1]
    assert grid[0, 1] == 5.0 and grid[0, 4] == np.inf


def test_pieces_of_a_cached_run_stand_where_they_belong() -> None:
    shown = snapshot(cached=True)
    shown.add_errors("decode", "logits", np.full((B, 3), 2.0), np.ones((B, 3), bool), 0)
    shown.add_errors("decode", "logits", np.full((B, 1), 9.0), np.ones((B, 1), bool), 3)
    assert shown.grids["decode"].rho[-1, 0].tolist()[:4] == [2.0, 2.0, 2.0, 9.0]


def test_a_long_row_is_folded_by_the_largest() -> None:
    columns = 3 * MOST_COLUMNS + 1
    shown, rho = snapshot(columns), np.zeros((B, columns))
    rho[0, 17] = 4.0
    shown.add_errors("free", "norm", rho, np.ones(rho.shape, bool), 0)
    grid = shown.grids["free"]
    assert grid.step == 4 and grid.rho.shape[2] <= MOST_COLUMNS
    assert grid.rho[-1, 0, 4] == 4.0 and grid.rho[-1, 0].sum() == 4.0


def test_the_scale_is_fixed_and_zero_is_apart() -> None:
    codes = encode_weights(np.array([0.0, 1e-30, 0.99e-4, 1e-4, 1.0, 3.0, np.nan, np.inf]))
    assert codes.tolist() == [0, 1, 2, 2, 253, 253, 254, 254]
    assert encode_weights(np.array([0.9e-4])).tolist() == [1]
    for weight in (2e-4, 0.01, 0.5):
        assert decode_weight(int(encode_weights(np.array([weight]))[0])) == pytest.approx(
            weight, rel=0.02
        )


def test_folding_keeps_a_single_leak() -> None:
    maps = np.zeros((7, 7))
    maps[5, 6] = 0.01
    assert fold_weights(maps, 3).shape == (3, 3) and fold_weights(maps, 3)[1, 2] == 0.01
    cells = np.full((4, 4), HIDDEN, np.uint8)
    cells[0, 0], cells[2, 3], cells[3, 3], cells[3, 0] = VISIBLE, LOST, LEAKED, LOST
    assert fold_cells(cells, 2).tolist() == [[VISIBLE, HIDDEN], [LOST, LEAKED]]


def test_maps_are_kept_of_three_layers_and_the_first_that_fails() -> None:
    shown = snapshot()
    wrong = probs()
    wrong[0, 1, 2, 4], wrong[0, 1, 2, 0] = 0.25, 0.0
    for layer in range(LAYERS):
        look(shown, layer, wrong if layer >= 1 else probs(), failed=layer >= 1)
    assert sorted(shown.sheets) == [0, 1, 2, 3] and shown.failed_layer == 1
    sheet = shown.sheets[1]
    assert (sheet.row, sheet.heads, sheet.weights.shape) == (0, (0, 1, 2), (3, 3, T, T))
    assert sheet.cells[1, 2].tolist() == [LOST, VISIBLE, VISIBLE, HIDDEN, LEAKED]
    assert not np.isin(sheet.cells[[0, 2]], (LEAKED, LOST)).any()
    assert sheet.moved[1] > 0.2 > sheet.moved[0] == 0.0
    assert shown.details is not None and 1 in shown.details.heads
    assert shown.observed_mask is not None and shown.observed_mask.layer == 1
    assert shown.observed_mask.cells[0, 2].tolist() == [LOST, VISIBLE, VISIBLE, HIDDEN, LEAKED]


@pytest.mark.parametrize("chunks", [(130, 66, 1, 1, 2), (1, 199)])
def test_maps_put_together_are_those_of_one_call(chunks: tuple[int, ...]) -> None:
    columns, noise = sum(chunks), np.random.default_rng(3)
    mask = np.tril(np.ones((1, columns, columns), bool))
    right = np.where(mask[:, None], noise.uniform(size=(1, N, columns, columns)), 0.0)
    wrong = right.copy()
    wrong[0, 1, 131, 140], wrong[0, 2, 150, 7] = 0.5, 0.0
    name, valid = "layers.0.attn_probs", np.ones((1, columns), bool)

    def shown(*sizes: int) -> PassSnapshot:
        made, stop = PassSnapshot("f64", "causal", 3, mask, 1, columns, len(sizes) > 1), 0
        for size in sizes:
            start, stop = stop, stop + size
            part = (slice(None), slice(None), slice(start, stop), slice(stop))
            reference = ReferenceTap(
                name, right[part], valid[:, start:stop], mask[:, start:stop, :stop]
            )
            gaps = np.abs(wrong[part] - right[part])
            made.add_attention({name: reference}, {name: wrong[part]}, bool(gaps.any()), start)
        return made

    whole, pieces = shown(columns), shown(*chunks)
    one, other = whole.sheets[0], pieces.sheets[0]
    assert one.step == -(-columns // SMALL) > 1 and (one.heads, one.row) == (other.heads, other.row)
    hidden = (one.cells == HIDDEN) | (other.cells == HIDDEN)
    assert hidden.any() and (one.cells == other.cells).all() and one.moved == other.moved
    assert (one.weights == other.weights).all()
    assert (one.cells == LEAKED).sum() == (one.cells == LOST).sum() == 1
    assert whole.details is not None and pieces.details is not None
    assert pieces.details.heads == whole.details.heads == (1, 2)
    assert whole.details.start == 0 and pieces.details.start == chunks[0]


def test_of_equal_maps_nothing_is_flagged() -> None:
    shown = snapshot()
    for layer in range(LAYERS):
        look(shown, layer, probs())
    assert sorted(shown.sheets) == [0, 2, 3] and shown.details is None
    assert shown.failed_layer is None
    assert not shown.sheets[0].weights[:, 2].any(), "no difference is an exact zero"


def test_maps_of_another_shape_are_left_out() -> None:
    shown = snapshot()
    look(shown, 0, probs()[..., :3], failed=True)
    assert not shown.sheets and shown.failed_layer == 0
