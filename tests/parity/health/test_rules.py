"""Every rule of health finds its fault at its place, and nothing in what is sound."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import attention_maps as maps
import numpy as np
import pytest

from parity.health.figures import LayerSummary, ModelFigures, summarise_layer
from parity.health.metrics.attention import Rollout
from parity.health.metrics.gradients import GradientFigures
from parity.health.metrics.layer import LayerFigures, layer_figures
from parity.health.rule import SEVERITIES, catalogue, find_all, heads_in_words

T, N, K, LAYERS = 70, 4, 2, 3


def layer(weights: np.ndarray | None = None, seed: int = 0, scores: float = 3.0) -> LayerFigures:
    """Return the figures of a layer of random states and soft attention."""
    rng = np.random.default_rng(seed)
    before = rng.standard_normal((1, T, 16))
    taps = {
        "input": before,
        "output": before + 0.5 * rng.standard_normal((1, T, 16)),
        "v_proj": rng.standard_normal((1, T, K, 5)),
        "attn_probs": (maps.soft(N, T, seed) if weights is None else weights)[None],
        "attn_scores": np.full((1, N, T, T), scores),
    }
    return layer_figures(taps, 0, maps.causal(T), np.ones(T, bool), Rollout())


def gradients(whole: float = 1.0, query: float = 0.3) -> GradientFigures:
    nothing = np.ones(N)
    return GradientFigures(whole, nothing, nothing[:K], nothing[:K], query, query)


@cache
def sound_layer(seed: int) -> LayerSummary:
    return summarise_layer([layer(seed=seed)])


def sound(**changes: Any) -> ModelFigures:
    model = ModelFigures(
        layers=[sound_layer(i) for i in range(LAYERS)],
        gradients=[gradients()] * LAYERS,
        dtype="f32",
        tokens=T,
        spectra={"q": 1.5, "k": 2.5},
        loss=3.0,
        chance=5.0,
        token=lambda row, at: f"{at}",
    )
    return replace(model, **changes)


def with_layer(one: LayerSummary, at: int = 1) -> ModelFigures:
    model = sound()
    return replace(model, layers=[*model.layers[:at], one, *model.layers[at + 1 :]])


def heads(at: int = 2, **changes: float) -> ModelFigures:
    """Return a model one head of whose layer 1 has other figures."""
    one = sound().layers[1]
    assert one.heads is not None
    arrays = {}
    for name, value in changes.items():
        arrays[name] = getattr(one.heads, name).copy()
        arrays[name][at] = value
    return with_layer(replace(one, heads=replace(one.heads, **arrays)))


def states(**changes: Any) -> ModelFigures:
    one = sound().layers[1]
    assert one.states is not None
    return with_layer(replace(one, states=replace(one.states, **changes)))


def mapped(weights: np.ndarray, at: int = 2, scores: float = 3.0) -> ModelFigures:
    """Return a model one head of whose layer 1 has this map."""
    every = maps.soft(N, T, 1)
    every[at] = weights
    return with_layer(summarise_layer([layer(every, 1, scores)]))


def leaking() -> np.ndarray:
    weights = maps.soft(1, T, 5)[0]
    weights[6, 9] = 0.001
    weights[6] /= weights[6].sum()
    return weights


def alike() -> ModelFigures:
    every = maps.soft(N, T, 1)
    every[3] = every[2]
    return with_layer(summarise_layer([layer(every, 1)]))


def lazy() -> ModelFigures:
    return with_layer(summarise_layer([layer(np.stack([maps.column(T, 0)] * N), 1)]))


# The rule, a model with its fault, layer and heads; a neighbour that has none of it.
CASES: dict[str, tuple[Callable[[], ModelFigures], int | None, tuple[int, ...], Any]] = {
    "leakage": (lambda: mapped(leaking()), 1, (2,), lambda: mapped(maps.soft(1, T, 5)[0])),
    "row-sum": (lambda: heads(row_sum=2e-5), 1, (2,), lambda: heads(row_sum=9e-6)),
    "rank-collapse": (lambda: states(residual=0.01), 1, (), lambda: states(residual=0.03)),
    "entropy-collapse": (
        lambda: mapped(maps.scattered(T)),
        1,
        (2,),
        lambda: mapped(maps.previous(T)),
    ),
    "gradient-not-finite": (
        lambda: sound(gradients=[gradients(), gradients(np.nan), gradients()]),
        1,
        (),
        lambda: sound(gradients=[gradients(), gradients(900.0), gradients()]),
    ),
    "single-column": (
        lambda: mapped(maps.column(T, 7)),
        1,
        (2,),
        lambda: mapped(maps.column(T, 0)),
    ),
    "max-logit": (lambda: heads(max_logit=101.0), 1, (2,), lambda: heads(max_logit=99.0)),
    "residual-exploding": (lambda: states(growth=11.0), 1, (), lambda: states(growth=9.0)),
    "residual-vanishing": (lambda: states(added=9e-4), 1, (), lambda: states(added=2e-3)),
    "gradient-exploding": (
        lambda: sound(gradients=[gradients(), gradients(1100.0), gradients()]),
        1,
        (),
        lambda: sound(gradients=[gradients(), gradients(900.0), gradients()]),
    ),
    "gradient-vanishing": (
        lambda: sound(gradients=[gradients(), gradients(9e-4), gradients()]),
        1,
        (),
        lambda: sound(gradients=[gradients(), gradients(2e-3), gradients()]),
    ),
    "query-key-starved": (
        lambda: sound(gradients=[gradients(), gradients(query=9e-4), gradients()]),
        1,
        (),
        lambda: sound(gradients=None),
    ),
    "random-weights": (
        lambda: sound(spectra={"q": 1.01, "k": 1.1}),
        None,
        (),
        lambda: sound(spectra={}),
    ),
    "sink": (lambda: mapped(maps.column(T, 0)), None, (), sound),
    "massive-activations": (
        lambda: states(largest=2000.0, ratio=1500.0),
        None,
        (),
        lambda: states(largest=2000.0, ratio=900.0),
    ),
    "lazy-layer": (lazy, 1, (), lambda: mapped(maps.column(T, 0))),
    "alike-heads": (alike, 1, (2, 3), lambda: heads(nearest=0.2)),
}


def found(model: ModelFigures) -> dict[str, Any]:
    return {one.rule: one for one in find_all(model)}


def test_every_rule_has_a_case() -> None:
    assert list(catalogue()) == list(CASES)


def test_a_sound_model_has_nothing() -> None:
    assert find_all(sound()) == []


@pytest.mark.parametrize("rule", CASES)
def test_a_fault_is_found_at_its_place(rule: str) -> None:
    make, at, of_heads, _ = CASES[rule]
    one = found(make())[rule]
    assert (one.layer, one.heads) == (at, of_heads)
    assert one.severity == catalogue()[rule].RULE.severity and one.message
    assert one.basis in ("paper", "definition", "heuristic") and one.source


@pytest.mark.parametrize("rule", CASES)
def test_its_neighbour_has_none(rule: str) -> None:
    assert rule not in found(CASES[rule][3]())


@pytest.mark.parametrize("rule", CASES)
def test_of_one_fault_one_grave_finding_is_made(rule: str) -> None:
    grave = [one.rule for one in find_all(CASES[rule][0]()) if one.severity != "information"]
    assert grave == ([rule] if catalogue()[rule].RULE.severity != "information" else [])


def test_the_two_collapses_are_told_apart() -> None:
    peaked, alike = mapped(maps.scattered(T)), states(value_residual=np.array([0.6, 1e-7]))
    assert list(found(peaked)) == ["entropy-collapse"]
    (one,) = find_all(alike)
    assert (one.rule, one.layer, one.heads) == ("rank-collapse", 1, (2, 3))
    assert "key head 1" in one.message
    assert found(states(cosine=0.9995))["rank-collapse"].value == 0.9995


def test_peaked_rows_with_huge_scores_collapse_wherever_they_are() -> None:
    assert "entropy-collapse" in found(mapped(maps.previous(T), scores=4000.0))
    sink = found(mapped(maps.column(T, 0), scores=40.0))
    assert set(sink) == {"sink"}


def test_states_that_shrink_vanish_too() -> None:
    assert found(states(growth=0.05))["residual-vanishing"].value == 0.05


def test_an_embedding_of_any_size_is_no_explosion() -> None:
    first = sound().layers[0]
    assert first.states is not None
    grown = replace(first, states=replace(first.states, growth=50.0))
    assert find_all(with_layer(grown, at=0)) == []
    assert found(with_layer(grown, at=1))["residual-exploding"].value == 50.0


def test_what_is_said_once_names_its_layers_and_holds_like_to_like() -> None:
    one = mapped(maps.column(T, 0)).layers[1]
    assert one.heads is not None and one.states is not None
    one = replace(one, states=replace(one.states, largest=2000.0, ratio=1500.0))
    apart = found(sound(layers=[one, sound_layer(0), one]))
    sink = apart["sink"]
    assert sink.message.startswith("2 of 12 heads rest on the first token (layers 0, 2, most in l")
    assert sink.value == one.heads.sink.max() > sink.threshold == 0.3
    assert apart["massive-activations"].message.startswith("layers 0, 2: up to 2000 in layer 0")


def test_gradients_that_are_no_numbers_hide_no_others() -> None:
    """They break in the last layer that has them, and the median is that of the others."""
    both = sound(gradients=[gradients(np.inf), gradients(np.nan), gradients(), gradients(1e-4)])
    both = replace(both, gradients=[*both.gradients, gradients()])  # type: ignore[misc]
    broken, vanishing = find_all(both)
    assert (broken.rule, broken.layer, broken.value) == ("gradient-not-finite", 1, 2)
    assert broken.message == "layer 1: gradients are not finite, nor are those of 1 layer before it"
    assert (vanishing.rule, vanishing.layer) == ("gradient-vanishing", 3)


def test_bfloat16_rows_may_be_off_by_more() -> None:
    off = heads(row_sum=1e-3)
    assert "row-sum" in found(off) and "row-sum" not in found(replace(off, dtype="bf16"))


def test_findings_come_gravest_first() -> None:
    model = states(growth=20.0)
    one = model.layers[1]
    assert one.heads is not None
    h = one.heads
    worse = replace(h, leakage=h.leakage + 1, leaking=h.leaking + 1, sink=h.sink + 0.5)
    order = find_all(with_layer(replace(one, heads=worse)))
    ranks = [SEVERITIES.index(one.severity) for one in order]
    assert ranks == sorted(ranks) and len(set(ranks)) == 3


def test_what_a_model_does_not_show_is_not_judged() -> None:
    blind = LayerSummary(None, None, float("nan"), *[np.zeros(0, int)] * 3, 0)
    assert find_all(sound(layers=[blind] * LAYERS, gradients=None, spectra={})) == []


def test_rows_are_put_together() -> None:
    bad = maps.soft(N, T, 4)
    bad[1, 3, 8] = 0.25
    rows = [layer(seed=3), layer(bad, seed=4)]
    both = summarise_layer(rows)
    assert both.heads is not None and both.states is not None
    each = [row.heads.entropy for row in rows if row.heads is not None]
    np.testing.assert_allclose(both.heads.entropy, np.mean(each, 0))
    assert both.heads.leakage[1] == 0.25
    assert (both.leak_row[1], both.heads.leak_query[1], both.heads.leak_key[1]) == (1, 3, 8)


def test_a_place_is_of_the_row_that_has_it() -> None:
    on_seven, on_nine = maps.soft(N, T, 4), maps.soft(N, T, 5)
    on_seven[1], on_nine[1] = 0.95 * maps.column(T, 7) + 0.05 * on_seven[1], maps.column(T, 9)
    on_nine[3, 8] *= 0.5
    both = with_layer(summarise_layer([layer(on_seven, 3), layer(on_nine, 4)]))
    both = replace(both, token=lambda row, at: f"{at} of text {row}")
    said = found(both)
    assert said["single-column"].message.endswith("on one key, in row 1 on key 9 of text 1")
    assert "weights of query 8 of text 1 in row 1 are off by 0.5" in said["row-sum"].message


def test_heads_are_said_shortly() -> None:
    assert heads_in_words([3]) == "head 3"
    assert heads_in_words([0, 1, 2, 5, 7, 8]) == "heads 0-2, 5, 7-8"


def test_the_table_of_findings_is_that_of_the_rules() -> None:
    page = (Path(__file__).parents[3] / "docs/health.md").read_text()
    rows = re.findall(r"^\| (error|warning|information) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    said = {
        rule: (severity, threshold.rpartition("(")[2].rstrip(")"))
        for severity, rules, threshold in rows
        for rule in re.findall(r"`([\w-]+)`", rules)
    }
    wanted = {id: (f.RULE.severity, f.RULE.basis) for id, f in catalogue().items()}
    assert said == wanted


@pytest.mark.parametrize("rule", CASES)
def test_every_rule_has_a_page(rule: str) -> None:
    page = catalogue()[rule].RULE.page()
    assert page.startswith(f"# {rule}: ") and "## Source" in page and "The threshold: " in page
    assert max(map(len, page.splitlines())) <= 100
