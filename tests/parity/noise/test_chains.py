"""Which isolated taps are one operator's: those all of whose operands the subject names."""

from __future__ import annotations

from parity.noise.chains import runs_chains, runs_one_operator
from parity.taps import AXES, LAYER_TAPS, OPERANDS, SETUP_TAPS


def test_a_subject_that_names_all_runs_single_operators() -> None:
    assert not runs_chains(frozenset())
    assert all(runs_one_operator(f"layers.0.{tap}", frozenset()) for tap in LAYER_TAPS)


def test_what_lacks_an_operand_is_a_chain() -> None:
    absent = frozenset({"layers.mlp_act"})
    assert runs_chains(absent)
    assert not runs_one_operator("layers.1.down_proj", absent)
    assert runs_one_operator("layers.1.up_proj", absent)


def test_a_layer_s_input_is_the_output_before_it() -> None:
    assert runs_one_operator("layers.1.input_layernorm", frozenset({"layers.input"}))
    both = frozenset({"layers.input", "layers.output"})
    assert not runs_one_operator("layers.1.input_layernorm", both)


def test_masks_and_positions_carry_no_rounding() -> None:
    assert not runs_chains(frozenset({"mask", "positions", "logits"}))
    assert runs_chains(frozenset({"rope.inv_freq"}))


def test_every_forward_tap_has_operands_that_exist() -> None:
    computed = {f"layers.{tap}" for tap in LAYER_TAPS} | {"norm", "logits"}
    assert set(OPERANDS) == computed
    assert {operand for operands in OPERANDS.values() for operand in operands} <= set(AXES)
    assert set(SETUP_TAPS) - {"rope.inv_freq"} == {"positions", "mask"}
