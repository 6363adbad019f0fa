"""Taps: what they record, what they put in its place, and what they refuse."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.errors import InputError
from jaxllama.taps import LAYER_TAPS, Taps, untapped

ONE, TWO = jnp.array([1.0, 1.5]), jnp.array([2.0, 2.5])


def test_untapped_hands_back_the_very_value() -> None:
    assert untapped("q_proj", ONE) is ONE
    assert untapped.inner({"q_proj": TWO})("q_proj", ONE) is ONE
    untapped.add_layers({"q_proj": ONE})
    assert untapped.recorded() == {}
    assert untapped.forced_layers() == {}


def test_taps_record_in_order_and_hand_back_the_very_value() -> None:
    taps = Taps()
    assert taps("embed", ONE) is ONE
    assert taps("norm", TWO) is TWO
    assert list(taps.recorded()) == ["embed", "norm"]
    assert taps.recorded()["norm"] is TWO


def test_the_record_is_a_copy() -> None:
    taps = Taps()
    taps("embed", ONE)
    taps.recorded().clear()
    assert list(taps.recorded()) == ["embed"]


def test_forced_values_are_recorded_as_computed_then_replaced_and_cast() -> None:
    taps = Taps({"embed": jnp.array([3.0, 4.001])})
    value = ONE.astype(jnp.bfloat16)
    out = taps("embed", value)
    assert taps.recorded()["embed"] is value
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), [3.0, 4.0])
    assert taps("norm", TWO) is TWO


def test_layer_values_are_unstacked_in_the_order_of_data_flow() -> None:
    taps = Taps()
    stacked = {name: jnp.array([[1.0], [2.0], [3.0]]) for name in sorted(LAYER_TAPS)}
    stacked |= {"cache.v": jnp.arange(6.0).reshape(3, 2), "cache.k": jnp.zeros((3, 2))}
    taps.add_layers(stacked)
    names = list(taps.recorded())
    assert names[: len(LAYER_TAPS)] == [f"layers.0.{name}" for name in LAYER_TAPS]
    assert names[len(LAYER_TAPS) : len(LAYER_TAPS) + 2] == ["cache.0.k", "cache.0.v"]
    assert len(names) == 3 * (len(LAYER_TAPS) + 2)
    np.testing.assert_array_equal(taps.recorded()["cache.2.v"], [4.0, 5.0])


def test_one_runs_record_can_be_forced_on_another() -> None:
    recorded = {"layers.0.q_proj": ONE, "layers.1.q_proj": TWO, "cache.1.k": TWO, "cache.0.k": ONE}
    forced = Taps({**recorded, "embed": ONE}).forced_layers()
    assert sorted(forced) == ["cache.k", "q_proj"]
    for stack in forced.values():
        np.testing.assert_array_equal(stack, jnp.stack([ONE, TWO]))


def test_stacked_replacements_go_to_the_layers() -> None:
    taps = Taps({"layers.q_proj": jnp.stack([ONE, TWO]), "logits": ONE})
    assert list(taps.forced_layers()) == ["q_proj"]
    inner = taps.inner({"q_proj": TWO})
    np.testing.assert_array_equal(inner("q_proj", ONE), TWO)
    assert taps("input", ONE) is ONE


def test_names_that_would_be_ignored_are_refused_all_at_once() -> None:
    with pytest.raises(InputError) as error:
        Taps({"layers.1.q_proj": ONE, "layers.q_porj": ONE, "head": ONE, "layers.0.nope": ONE})
    text = str(error.value)
    assert "4 problems" in text
    assert "layers.q_proj for layers [1] only: force all or none" in text
    for name in ("layers.q_porj", "head", "layers.nope"):
        assert f"{name}: no such tap" in text


def test_a_replacement_of_another_shape_is_refused() -> None:
    taps = Taps({"embed": jnp.zeros((1, 2))})
    with pytest.raises(InputError, match=r"forced tap embed: shape \(1, 2\), expected \(2,\)"):
        taps("embed", ONE)
