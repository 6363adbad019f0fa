"""Every figure of health: on maps and states where it is known, and by its definition."""

from __future__ import annotations

import math

import attention_maps as maps
import numpy as np
import pytest

from parity.health.metrics.attention import (
    MOST_SINGULAR,
    HeadFigures,
    Rollout,
    head_figures,
    lazy_k,
)
from parity.health.metrics.gradients import gradient_figures
from parity.health.metrics.layer import layer_figures
from parity.health.metrics.states import mean_cosine, rank_residual, state_figures

T = 90


def of(*heads: np.ndarray, visible: np.ndarray | None = None) -> HeadFigures:
    seen = maps.causal(len(heads[0])) if visible is None else visible
    return head_figures(np.stack(heads), seen)


def test_entropy_is_0_of_peaked_rows_and_1_of_uniform_ones() -> None:
    found = of(maps.uniform(T), maps.previous(T), maps.scattered(T))
    np.testing.assert_allclose(found.entropy, [1, 0, 0], atol=1e-12)
    assert found.peaked.tolist() == [0, 1, 1]


def test_peaks_at_one_distance_are_told_from_scattered_ones() -> None:
    found = of(maps.previous(T), maps.scattered(T), maps.column(T, 0))
    assert found.one_distance[0] == 1
    assert found.one_distance[1] < 0.3 and found.one_distance[2] < 0.1


def test_a_single_column_is_placed_and_a_sink_is_the_first() -> None:
    found = of(maps.column(T, 7), maps.column(T, 0), maps.uniform(T), maps.scattered(T))
    assert (found.column[:2], found.column_at[:2].tolist()) == (pytest.approx([1, 1]), [7, 0])
    assert found.column[2] < 0.1 and found.column[3] < 0.3
    assert found.sink[1] == 1 and found.sink[2] < 0.1
    assert found.sink[0] == pytest.approx(1 / 64)  # the first token sees nothing else


def test_the_sink_is_gus_alpha() -> None:
    weights = maps.soft(3, T)
    expected = [sum(head[i, 0] for i in range(64)) / 64 for head in weights]
    np.testing.assert_allclose(head_figures(weights, maps.causal(T)).sink, expected, rtol=1e-12)


def test_a_lazy_map_has_few_singular_values() -> None:
    assert of(maps.column(T, 0)).lazy_k[0] == 1
    assert lazy_k(np.eye(T)) == math.ceil(0.9 * T)
    weights = maps.soft(1, T)[0]
    squares = np.linalg.svd(weights, compute_uv=False) ** 2
    short = lazy_k(weights)
    assert squares[:short].sum() >= 0.9 * squares.sum() > squares[: short - 1].sum()


def test_a_long_map_is_measured_by_its_beginning() -> None:
    long = MOST_SINGULAR + 40
    weights = maps.soft(1, long)[0]
    assert of(weights).lazy_k[0] == lazy_k(weights[:MOST_SINGULAR, :MOST_SINGULAR])


def test_reach_is_a_distance_in_tokens() -> None:
    found = of(maps.previous(T), maps.uniform(T), maps.column(T, 0), np.eye(T))
    expected = [(T - 1) / T, (T - 1) / 4, (T - 1) / 2, 0]
    np.testing.assert_allclose(found.reach, expected, atol=1e-9)


def test_one_leaking_cell_is_seen_and_placed() -> None:
    clean = maps.soft(2, T)
    leaking = clean.copy()
    leaking[1, 5, 8] = 0.01
    assert head_figures(clean, maps.causal(T)).leakage.tolist() == [0, 0]
    found = head_figures(leaking, maps.causal(T))
    assert found.leakage == pytest.approx([0, 0.01]) and found.leaking.tolist() == [0, 1]
    assert (found.leak_query.tolist(), found.leak_key.tolist()) == ([-1, 5], [-1, 8])
    assert found.row_sum == pytest.approx([0, 0.01], abs=1e-12), "a row's sum counts all of it"


def test_a_row_that_does_not_add_up_is_seen() -> None:
    weights = maps.soft(2, T)
    weights[0, 30] *= 0.75
    found = head_figures(weights, maps.causal(T))
    assert found.row_sum == pytest.approx([0.25, 0], abs=1e-12)
    assert found.row_sum_at[0] == 30


def test_heads_that_are_alike_have_no_distance() -> None:
    weights = maps.soft(3, T)
    weights[2] = weights[0]
    found = head_figures(weights, maps.causal(T))
    assert found.nearest_head[[0, 2]].tolist() == [2, 0]
    assert found.nearest[0] == pytest.approx(0, abs=1e-7) and found.nearest[1] > 0.3
    apart = of(maps.previous(T), np.eye(T))  # but for the first row, which has no choice
    assert apart.nearest == pytest.approx([1, 1])
    assert of(np.eye(T)).nearest_head.tolist() == [-1]


def test_the_largest_logit_is_of_what_is_seen() -> None:
    scores = np.zeros((2, T, T))
    scores[0, 3, 2], scores[0, 2, 3], scores[1, 1, 1] = 5.0, 900.0, -3.0
    found = head_figures(maps.soft(2, T), maps.causal(T), scores)
    assert found.max_logit.tolist() == [5, 0]
    assert np.isnan(head_figures(maps.soft(2, T), maps.causal(T)).max_logit).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, "bfloat16"])
def test_pads_are_left_out(dtype: object) -> None:
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    short, pads = maps.soft(2, 40).astype(kind), 7
    padded = np.full((2, 40 + pads, 40 + pads), 1 / 47, kind)
    padded[:, pads:, pads:] = short
    padded[:, pads:, :pads] = 0
    visible = np.zeros((47, 47), bool)
    visible[pads:, pads:] = maps.causal(40)
    bare, found = head_figures(short, maps.causal(40)), head_figures(padded, visible)
    for name in ("entropy", "sink", "column", "lazy_k", "reach", "leakage", "nearest"):
        np.testing.assert_allclose(getattr(found, name), getattr(bare, name), atol=1e-6)
    assert (found.column_at == bare.column_at + pads).all()


def test_a_row_of_pads_alone_has_no_figures() -> None:
    found = head_figures(np.ones((2, 3, 3)), np.zeros((3, 3), bool))
    assert np.isnan(found.entropy).all() and found.column_at.tolist() == [-1, -1]


def test_figures_are_their_definitions() -> None:
    length, weights = 11, maps.soft(2, 11)
    found = head_figures(weights, maps.causal(length))
    for h, head in enumerate(weights):
        entropies = [
            -sum(w * math.log(w) for w in head[i, : i + 1]) / math.log(i + 1)
            for i in range(1, length)
        ]
        assert found.entropy[h] == pytest.approx(sum(entropies) / len(entropies), rel=1e-12)
        reach = sum(head[i, j] * (i - j) for i in range(length) for j in range(i + 1)) / length
        assert found.reach[h] == pytest.approx(reach, rel=1e-12)
    p, q = weights[0, 1:], weights[1, 1:]
    divergence = 0.0
    for a, b in zip(p, q, strict=True):
        for x, y in zip(a, b, strict=True):
            m = (x + y) / 2
            divergence += sum(w * math.log2(w / m) for w in (x, y) if w) / 2
    assert found.nearest[0] == pytest.approx(math.sqrt(divergence / (length - 1)), rel=1e-9)


def test_rollout_multiplies_layers_with_their_residuals() -> None:
    rollout, seen = Rollout(), maps.causal(T)
    assert rollout.add(np.eye(T)[None], seen) == pytest.approx(0)
    once = rollout.add(maps.previous(T)[None], seen)
    assert once == pytest.approx(0.5 * (T - 1) / T)
    assert rollout.add(maps.previous(T)[None], seen) == pytest.approx(
        np.mean([min(i, 1) * 0.5 + 0.25 * 2 * (i > 1) for i in range(T)]), rel=0.02
    )


def test_tokens_all_alike_have_no_residual() -> None:
    rng = np.random.default_rng(0)
    one = rng.standard_normal(12)
    assert rank_residual(np.tile(one, (T, 1))) == pytest.approx(0, abs=1e-12)
    assert mean_cosine(np.tile(one, (T, 1))) == pytest.approx(1)
    others = rng.standard_normal((T, 12))
    assert rank_residual(others) > 0.8 and abs(mean_cosine(others)) < 0.05
    assert mean_cosine(np.eye(12)) == 0
    assert math.isnan(rank_residual(others[:1])) and math.isnan(mean_cosine(others[:1]))


def test_the_rank_residual_is_what_their_mean_leaves_over_the_whole() -> None:
    # Left are (1, 0) and (-1, 0): column sum 2, row sum 1; of the whole both are 4.
    assert rank_residual(np.array([[3.0, 1.0], [1.0, 1.0]])) == pytest.approx(math.sqrt(2) / 4)


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    states = np.random.default_rng(1).standard_normal((7, 5)) + 0.7
    units = [row / math.sqrt(sum(row**2)) for row in states]
    pairs = [sum(units[i] * units[j]) for i in range(7) for j in range(7) if i != j]
    assert mean_cosine(states) == pytest.approx(sum(pairs) / len(pairs))


def test_states_say_what_is_added_and_what_is_massive() -> None:
    rng = np.random.default_rng(0)
    before, values = rng.standard_normal((T, 12)), rng.standard_normal((T, 2, 5))
    values[:, 1] = values[0, 1]
    after = 1.5 * before
    after[4, 3] = -4000.0
    found = state_figures(before, after, values)
    assert found.growth == pytest.approx(1.5) and found.added == pytest.approx(0.5)
    assert (found.largest, found.largest_token, found.largest_feature) == (4000, 4, 3)
    assert found.ratio > 1000
    assert found.value_residual[0] > 0.5 > 1e-12 > found.value_residual[1]
    calm = state_figures(before, 1.5 * before, None)
    assert calm.ratio < 10 and calm.value_residual.size == 0


def test_gradients_are_split_by_heads() -> None:
    gradients = {
        "q_proj": np.repeat([[3.0], [4.0]], 5, axis=0) * np.ones((10, 1)),
        "k_proj": np.zeros((5, 2)),
        "v_proj": np.ones((5, 5)),
        "input_layernorm": np.array([3.0]),
    }
    found = gradient_figures(gradients, 2, 1)
    np.testing.assert_allclose(found.query, np.sqrt([45, 80]))
    assert (found.key.tolist(), found.value.tolist()) == ([0], [5])
    assert found.query_to_value == pytest.approx(math.sqrt(125) / 5)
    assert found.key_to_value == 0
    assert found.whole == pytest.approx(math.sqrt(125 + 25 + 9))
    assert math.isnan(gradient_figures({}, 2, 1).query_to_value)


def test_a_layer_is_measured_as_far_as_it_shows_itself() -> None:
    rng, seen, valid = np.random.default_rng(0), maps.causal(T), np.ones(T, bool)
    taps = {"input": rng.standard_normal((1, T, 6)), "output": rng.standard_normal((1, T, 6))}
    blind = layer_figures(taps, 0, seen, valid, Rollout())
    assert blind.heads is None and blind.states is not None and math.isnan(blind.rollout)
    taps["attn_probs"] = maps.soft(2, T)[None]
    found = layer_figures(taps, 0, seen, valid, Rollout())
    assert found.heads is not None and found.rollout > 0
