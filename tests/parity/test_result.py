"""Verdicts, exit codes and the JSON document."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
from records import result, row, witness_row

from parity.records import read_record
from parity.result import (
    EXIT_CODES,
    SCHEMA_VERSION,
    CauseReport,
    Divergence,
    Experiment,
    NamedCause,
    Suspect,
)

# Fields that scripts rely on.
DOCUMENT = {
    "schema_version",
    "subject",
    "verdict",
    "difference",
    "first_divergence",
    "cause",
    "quality",
    "reading",
    "taps",
    "witnesses",
    "coverage",
    "tolerance",
    "environment",
    "inputs",
    "checkpoint",
    "command",
    "notes",
    "timing",
}


def test_equal() -> None:
    found = result([row("embed")])
    assert (found.verdict, found.exit_code) == ("equal", 0)


def test_divergent() -> None:
    found = result([row("embed", failed=True)])
    assert (found.verdict, found.exit_code) == ("divergent", 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"witnesses": [witness_row(), witness_row(witness="hf", rho=8.1)]},
        {"witnesses": [witness_row(problems=("embed: shape",))]},
        {"witnesses": [witness_row(unmatched=("layers.0.q_proj",))]},
        {"witnesses": [witness_row(rho=math.nan)]},
        {"unmatched": ("layers.0.sorcery",)},
    ],
)
def test_what_leaves_a_verdict_open_hides_no_certain_divergence(changes: dict[str, object]) -> None:
    found = result([row("embed")], **changes)
    assert (found.verdict, found.exit_code) == ("inconclusive", 3)
    found = result([row("embed", failed=True, scenario="packed")], **changes)
    assert (found.verdict, found.exit_code, found.is_open) == ("divergent", 1, True)


@pytest.mark.parametrize(("error", "verdict"), [(1.9e-3, "inconclusive"), (2.1e-3, "divergent")])
def test_where_a_witness_contradicts_the_reference_a_divergence_is_from_both(
    error: float, verdict: str
) -> None:
    wrong = witness_row(witness="hf", rho=9e9, error=1e-3)
    failed = row("embed", failed=True, error=error)
    assert result([failed], witnesses=[witness_row(), wrong]).verdict == verdict
    elsewhere = witness_row(witness="hf", rho=9e9, error=1e-3, lane="bf16")
    assert result([failed], witnesses=[elsewhere]).verdict == "divergent"
    for unfit in ({"problems": ("embed: shape",)}, {"error": math.nan}, {"error": math.inf}):
        witness = witness_row(**{"witness": "hf", "rho": 9e9, "error": 0.0} | unfit)
        assert result([failed], witnesses=[witness]).verdict == "inconclusive"


def test_an_operator_that_may_be_several_may_round_as_several() -> None:
    several = {"lane": "bf16", "mode": "isolated", "limit": 2.0, "rho": 3.0, "peak_rho": 3.0}
    gap = {"unmatched": ("layers.0.q_proj",)}
    assert result([row("embed", failed=True, **several)]).verdict == "divergent"
    assert result([row("embed", failed=True, **several)], **gap).verdict == "inconclusive"
    for certain in ({"rho": 201.0}, {"mode": "free"}, {"structural": True}):
        failed = row("embed", failed=True, **several | certain)
        assert result([failed], **gap).verdict == "divergent"


def test_bad_input_has_an_exit_code_of_its_own() -> None:
    assert 2 not in EXIT_CODES.values()


@pytest.mark.parametrize(
    "changes",
    [
        {"rho": 32.1},
        {"peak_rho": 64.1},
        {"rho": math.nan},
        {"peak_rho": math.nan},
        {"rho": math.inf},
        {"problems": ("1 hidden keys carry weight",)},
    ],
)
def test_a_row_fails(changes: dict[str, object]) -> None:
    assert row("embed").passed
    assert not row("embed", **changes).passed


def test_taps_are_counted_once_however_often_they_are_compared() -> None:
    rows = [row("embed"), row("embed", mode="isolated"), row("embed", lane="f32"), row("logits")]
    assert result(rows).compared == 2


def test_the_document_survives_a_round_trip() -> None:
    rows = [row("embed"), row("layers.0.q_rope", failed=True, problems=("a problem",))]
    found = result(
        rows,
        absent=("layers.attn_probs",),
        notes=["a note"],
        not_run=("gradients",),
        timing={"forward_s": 1.5},
    )
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(document) == DOCUMENT
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["verdict"] == "divergent"
    first = document["first_divergence"]
    assert (first["tap"], first["kind"], first["flagged"]) == ("layers.0.q_rope", "upstream", [])
    assert first["worst"]["index"] == {"B": 0, "T": 3, "D": 5}
    assert [tap["passed"] for tap in document["taps"]] == [True, False]
    assert document["taps"][1]["problems"] == ["a problem"]
    assert document["coverage"] == {
        "expected": 42,
        "compared": 2,
        "absent": ["layers.attn_probs"],
        "unmatched": [],
        "not_run": ["gradients"],
        "runs": {"f64 causal free": 2},
        "witnesses": {"torch": 1},
    }
    assert document["witnesses"][0]["agrees"] is True


def test_an_equal_document_names_no_divergence() -> None:
    document = result([row("embed")]).to_dict()
    assert document["first_divergence"] is None and document["cause"] is None


def test_nan_and_infinity_become_strings() -> None:
    found = result([row("embed", rho=math.nan, error=-math.inf, facts={"shift": math.inf})])
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    tap = document["taps"][0]
    assert (tap["rho"], tap["error"], tap["facts"]["shift"]) == ("nan", "-inf", "inf")


def test_a_cause_goes_through_json_and_older_documents_are_read() -> None:
    cause = CauseReport(
        "rope-theta",
        "title",
        "summary",
        experiments=[Experiment("theta", "embed", 1.0, 0.0)],
        suspects=[Suspect("rope-sign", "backwards", 0.1)],
        others=[NamedCause("norm-eps", "eps", "eps 1e-6")],
    )
    assert read_record(CauseReport, json.loads(json.dumps(asdict(cause))), "cause") == cause
    old = {"id": "x", "title": "t", "summary": "s", "confirmed": True, "some_later_field": 1}
    assert read_record(CauseReport, old, "cause") == CauseReport("x", "t", "s", confirmed=True)


def test_a_printed_result_is_a_few_lines() -> None:
    plain = result([row("embed")])
    assert repr(plain) == str(plain)
    assert repr(plain).splitlines()[0].startswith("equal: 1 of ")
    assert repr(plain).splitlines()[-1] == f"again: {plain.command}"
    failed = row("embed", failed=True)
    cause = CauseReport("rope-theta", "theta", "theta is another", confirmed=True)
    full = result(
        [failed] * 3000,
        first_divergence=Divergence(failed, "operator", ("embed",), "meaning"),
        cause=cause,
        unmatched=tuple(f"layers.{i}.q_proj" for i in range(99)),
        witnesses=[witness_row(witness="hf", rho=1e9)] * 50,
        not_run=tuple(f"scenario {i}" for i in range(99)),
        notes=["a note\nof two lines"] * 40,
        command="parity run " + "x" * 9000,
    )
    lines = repr(full).splitlines()
    assert len(lines) <= 8 < 12 and max(map(len, lines)) <= 400
    assert [line.partition(":")[0] for line in lines] == [
        "divergent (meaning)",
        "not run",
        "first divergence",
        "cause",
        "unmatched",
        "witnesses disagree",
        "notes",
        "again",
    ]
