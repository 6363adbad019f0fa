"""Where a difference begins, and what kind of beginning it is."""

from __future__ import annotations

import pytest
from records import row

from parity.locate import first_divergence
from parity.result import Divergence


def located(*rows: object) -> Divergence:
    found = first_divergence(rows)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_nothing_failed() -> None:
    assert first_divergence([row("embed"), row("logits", mode="isolated")]) is None
    assert first_divergence([]) is None


def test_the_first_in_data_flow_not_in_the_list_and_not_the_largest() -> None:
    found = located(
        row("logits", failed=True, rho=1e12),
        row("layers.10.input", failed=True),
        row("layers.2.q_rope", failed=True, rho=99.0),
        row("layers.2.q_proj"),
    )
    assert found.row.tap == "layers.2.q_rope"


def test_an_operator_that_is_wrong_on_the_references_inputs() -> None:
    wrong = [row("layers.1.mlp_act", failed=True, mode=mode) for mode in ("free", "isolated")]
    found = located(row("layers.1.output", failed=True), *wrong)
    assert (found.row.tap, found.row.mode, found.kind) == ("layers.1.mlp_act", "free", "operator")


def test_a_wrong_angle_table_is_flagged_beside_what_it_spoils() -> None:
    found = located(
        row("rope.inv_freq", failed=True),
        row("rope.inv_freq", failed=True, mode="isolated"),
        row("layers.0.q_rope", failed=True),
        row("layers.0.q_rope", mode="isolated"),
    )
    assert (found.row.tap, found.kind) == ("layers.0.q_rope", "upstream")
    assert found.flagged == ("rope.inv_freq",)


def test_a_wrong_setup_that_has_spoilt_nothing_yet() -> None:
    found = located(row("positions", failed=True, problems=("3 of 9 entries differ",)))
    assert (found.row.tap, found.kind, found.flagged) == ("positions", "setup", ("positions",))


@pytest.mark.parametrize(("lane", "kind"), [("f64", "upstream"), ("bf16", "drift")])
def test_free_wrong_and_every_operator_right(lane: str, kind: str) -> None:
    found = located(
        row("layers.4.output", failed=True, lane=lane),
        row("layers.4.output", mode="isolated", lane=lane),
    )
    assert (found.row.tap, found.kind) == ("layers.4.output", kind)


def test_bad_rounding_is_named_where_it_happens_not_where_it_shows() -> None:
    rows = [
        row("layers.0.post_attention_layernorm", failed=True, mode="isolated", lane="bf16"),
        row("layers.0.post_attention_layernorm", lane="bf16"),
        row("layers.3.output", failed=True, lane="bf16"),
    ]
    found = located(*rows)
    assert (found.row.tap, found.kind) == ("layers.0.post_attention_layernorm", "operator")


def test_only_isolated_failed() -> None:
    found = located(row("layers.0.v_proj", failed=True, mode="isolated"), row("layers.0.v_proj"))
    assert (found.row.mode, found.kind) == ("isolated", "operator")


def test_the_lane_that_was_run_first_decides() -> None:
    early = row("layers.0.embed", failed=True, lane="bf16")
    found = located(row("logits", lane="f64", failed=True), early)
    assert found.row.lane == "f64"
    assert located(row("logits", lane="f64"), early).row.lane == "bf16"


def test_a_later_step_forwards_comes_before_a_gradient() -> None:
    late = row("layers.1.output", failed=True, mode="decode", step=2)
    found = located(row("grad.layers.1.input", failed=True, mode="grad"), late)
    assert found.row.tap == "layers.1.output"


def test_the_earliest_decoding_step_comes_first() -> None:
    found = located(
        row("layers.0.q_rope", failed=True, mode="decode", step=3),
        row("layers.1.output", failed=True, mode="decode", step=2),
    )
    assert (found.row.step, found.row.tap) == (2, "layers.1.output")
