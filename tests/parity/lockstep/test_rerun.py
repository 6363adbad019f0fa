"""Which alarms are looked at once more, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from records import row, witness_row

from parity.lockstep.comparator import PassResult
from parity.lockstep.participants import Participant
from parity.lockstep.rerun import in_doubt, run_until_sure

MILD = {"rho": 40.0, "limit": 16.0}


def test_only_what_rounding_could_explain_is_in_doubt() -> None:
    mild = row("norm", lane="f32", **MILD)
    assert in_doubt([row("norm"), mild], "f32")
    assert not in_doubt([mild], "bf16")
    assert not in_doubt([row("norm", lane="f32")], "f32")


def test_what_comes_near_an_alarm_is_in_doubt_and_so_is_a_chain() -> None:
    assert in_doubt([row("norm", lane="f32", rho=15.9, limit=16.0)], "f32")
    assert not in_doubt([row("norm", lane="f32", rho=11.0, limit=16.0)], "f32")
    assert in_doubt([row("norm", lane="f32", mode="isolated", chained=True, **MILD)], "f32")
    assert not in_doubt([row("norm", rho=31.0)], "f64")


@pytest.mark.parametrize(
    "sure",
    [
        row("embed", failed=True),
        row("norm", lane="f32", failed=True),
        row("norm", lane="f32", structural=True, problems=("shape",)),
        row("norm", lane="f32", mode="isolated", rho=5.0, limit=4.0),
    ],
)
def test_what_no_order_of_a_run_explains_is_not(sure: object) -> None:
    assert not in_doubt([row("norm", lane="f32", **MILD), sure], "f32")  # type: ignore[list-item]


def test_a_dtype_in_doubt_is_run_again_alone_and_the_second_run_counts() -> None:
    asked: list[dict[str, int]] = []

    def run(participants: Mapping[str, Sequence[Participant]]) -> PassResult:
        asked.append({lane: len(present) for lane, present in participants.items()})
        figures = MILD if len(asked) == 1 else {"rho": 2.0, "limit": 16.0}
        rows = [
            row("norm", lane=lane, **(figures if lane == "f32" else {})) for lane in participants
        ]
        return PassResult(rows, [witness_row(lane=lane) for lane in participants], {"x"})

    participants: dict[str, list[Participant]] = {"f64": [], "f32": [], "bf16": []}
    found = run_until_sure(run, participants, lambda lane, present: [object()])  # type: ignore[list-item]
    assert asked == [{"f64": 0, "f32": 0, "bf16": 0}, {"f32": 1}]
    assert sorted(r.lane for r in found.rows) == ["bf16", "f32", "f64"]
    assert all(r.passed for r in found.rows)
    assert len(found.witnesses) == 3 and found.unmatched == {"x"}
