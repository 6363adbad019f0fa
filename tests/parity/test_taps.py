"""The names every implementation agrees on, and the order in which they depend on each other."""

from __future__ import annotations

import random

from jaxllama.taps import LAYER_TAPS as MODEL_LAYER_TAPS
from parity.taps import AXES, LAYER_TAPS, expected_names, flow_key, in_flow_order, split_name


def test_every_name_has_axes() -> None:
    assert all(split_name(name)[0] in AXES for name in expected_names(3, cache=True))


def test_counts_of_a_pass() -> None:
    assert len(expected_names(3)) == 4 + 3 * len(LAYER_TAPS) + 2
    assert len(expected_names(3, cache=True)) == len(expected_names(3)) + 2 * 3
    assert len(set(expected_names(7, cache=True))) == len(expected_names(7, cache=True))


def test_the_model_names_the_same_taps_in_the_same_order() -> None:
    assert tuple(LAYER_TAPS) == MODEL_LAYER_TAPS


def test_shuffled_names_return_to_data_flow_order() -> None:
    names = expected_names(12)
    shuffled = random.Random(0).sample(names, len(names))
    assert in_flow_order(shuffled) == names
    assert in_flow_order(shuffled) != sorted(names)  # layers.10 would come before layers.2


def test_a_cache_lies_between_rotation_and_scores() -> None:
    names = in_flow_order(
        ["layers.1.attn_scores", "cache.1.v", "cache.1.k", "layers.1.k_rope", "layers.0.output"]
    )
    assert names == [
        "layers.0.output",
        "layers.1.k_rope",
        "cache.1.k",
        "cache.1.v",
        "layers.1.attn_scores",
    ]


def test_unknown_names_come_last_in_their_stage() -> None:
    assert flow_key("layers.2.sorcery") > flow_key("layers.2.output")
    assert flow_key("layers.2.sorcery") < flow_key("layers.3.input")
    assert flow_key("sorcery") > flow_key("logits")
