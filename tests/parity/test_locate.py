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


def test_only_what_users_run_whole_failed() -> None:
    whole = row("logits", failed=True, mode="production")
    assert located(row("logits"), row("logits", mode="isolated"), whole).kind == "whole"
    assert located(row("logits", failed=True), whole).kind == "upstream"
    isolated = row("logits", failed=True, mode="isolated")
    assert located(row("logits"), isolated, whole).kind == "operator"
    backward = row("grad.lm_head.weight", failed=True, mode="production")
    assert located(row("grad.lm_head.weight", mode="grad"), backward).kind == "whole"


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


def test_float64_tells_meaning() -> None:
    found = located(row("embed", lane="f32", failed=True), row("embed", failed=True))
    assert (found.difference, found.row.lane) == ("meaning", "f64")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"rho": 33.0}, "rounding"),
        ({"peak_rho": 70.0}, "rounding"),
        ({"rho": 3201.0}, "computation"),
        ({"peak_rho": 6401.0}, "computation"),
        ({"rho": float("nan")}, "computation"),
        ({"problems": ("9 hidden keys carry weight",), "structural": True}, "computation"),
        ({"problems": ("rows of weights add up to 1 within 0.1 only",)}, "rounding"),
    ],
)
def test_what_float64_does_not_see_is_computation_or_rounding(
    changes: dict[str, object], difference: str
) -> None:
    found = located(row("norm"), row("norm", lane="bf16", **changes))
    assert found.difference == difference


def test_another_computation_comes_before_worse_rounding() -> None:
    mild = row("norm", lane="f32", rho=33.0)
    grave = row("logits", lane="bf16", failed=True)
    found = located(row("norm"), row("logits"), mild, grave)
    assert (found.row.tap, found.difference) == ("logits", "computation")


def test_without_the_same_run_in_float64_meaning_is_not_judged() -> None:
    failed = row("norm", lane="f32", failed=True)
    assert located(failed).difference == "not judged"
    assert located(row("norm", mode="decode"), failed).difference == "not judged"
    assert located(row("norm"), failed).difference == "computation"


def test_products_of_one_term_are_judged_beside_any_run_in_float64() -> None:
    narrow = row("logits", lane="f32", scenario="one-hot", mode="probe", rho=130.0, limit=4.0)
    found = located(row("norm"), narrow)
    assert (found.row.mode, found.kind, found.difference) == ("probe", "operator", "rounding")
