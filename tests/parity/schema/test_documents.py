"""What commands write holds to its schema; a document that changes under its version is found."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_results
import jsonschema
import numpy as np
import pytest
from records import result, row
from typer.testing import CliRunner

import parity
from jaxllama.errors import InputError
from jaxllama.plan.request import check_plan
from jaxllama.plan.run import plan
from parity.cli import app
from parity.lint.attentions import resolve
from parity.lint.case import Case
from parity.lint.linter import lint, probe
from parity.schema import pages
from parity.schema.annotations import Schemas, shape, strict
from parity.schema.documents import kinds

FOLDER = Path(__file__).parents[3] / "docs/schema"


def valid(kind: str, document: Any) -> Any:
    """Hold a document to its schema, in which nothing may be without a name; return it as read."""
    read = json.loads(json.dumps(document))
    checker = jsonschema.Draft202012Validator
    checker.check_schema(schema := kinds()[kind].schema())
    checker(strict(schema)).validate(read)
    return read


@pytest.fixture(scope="module")
def divergent() -> dict[str, Any]:
    """A run that has all parts: a divergence, its cause, suspects, experiments, witnesses."""
    found = parity.run(
        "tiny",
        dtypes="f64",
        modes="free,isolated",
        scenarios="causal",
        overrides={"rope_theta": 1e6},
        length=24,
    )
    return valid("result", found.to_dict())


def test_a_result(divergent: dict[str, Any]) -> None:
    assert divergent["verdict"] == "divergent" and divergent["cause"]["id"] == "rope-theta"
    assert divergent["first_divergence"]["kind"]


def test_a_result_with_what_is_no_number() -> None:
    rows = [row("embed", error=np.inf, rho=np.inf, worst=None, facts={"kl": np.nan})]
    assert valid("result", result(rows).to_dict())["taps"][0]["rho"] == "inf"


def test_a_result_of_fewer_bits() -> None:
    found = parity.run(
        "tiny", dtypes="f32", modes="free", scenarios="causal", quant="int8", length=24
    )
    assert valid("result", found.to_dict())["quality"]["quant"] == "int8"


def test_a_report_of_health() -> None:
    found = parity.check_health("tiny", length=16, baseline="tiny")
    assert valid("health", found.to_dict())["layers"][0]["gradients"]


def test_a_report_of_quality(tmp_path: Path) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": f"a text of words {n}"}) + "\n" for n in range(4)))
    found = parity.measure_quality("tiny", data, quant="int8")
    assert valid("quality", found.to_dict())["distributions"]


def test_reports_of_lint_and_probe() -> None:
    found = lint(Case(mask=np.tril(np.ones((1, 1, 6, 6))), use="additive"))
    one = valid("lint", {"mask": "mask.npy", **found.to_json()})
    assert one["findings"][0]["rule"] == "M01"
    valid("lint", {"from": "a:b", "schema_version": 1, "verdict": "faulty", "masks": [one]})
    valid("probe", probe(resolve("xla")).to_json())


@pytest.mark.ill_typed  # caches of shapes alone
def test_a_benchmark_and_a_plan() -> None:
    found = bench_results.result(
        bench_results.measured("jaxllama", 1.0), bench_results.measured("tunix", 2.0)
    )
    assert valid("bench", found.to_dict())["timings"]
    for device in (None, "h100"):
        asked = check_plan("tiny", batch=1, context=16, device=device)
        valid("plan", plan(asked).to_dict())


def _renamed(document: dict[str, Any]) -> None:
    document["verdicts"] = document.pop("verdict")


def _retyped(document: dict[str, Any]) -> None:
    document["taps"][0]["rho"] = "large"


def _added(document: dict[str, Any]) -> None:
    document["taps"][0]["colour"] = 1


def _of_another_version(document: dict[str, Any]) -> None:
    document["schema_version"] = "9.9"


@pytest.mark.parametrize("change", [_renamed, _retyped, _added, _of_another_version])
def test_a_change_is_noticed(
    change: Callable[[dict[str, Any]], None], divergent: dict[str, Any]
) -> None:
    changed = copy.deepcopy(divergent)
    change(changed)
    with pytest.raises(jsonschema.ValidationError):
        valid("result", changed)


def test_readers_pass_over_what_a_later_version_adds(divergent: dict[str, Any]) -> None:
    jsonschema.validate({**divergent, "later": 1}, kinds()["result"].schema())


def test_the_folder_is_as_it_would_be_written() -> None:
    assert pages.changed(FOLDER) == []
    assert (FOLDER / "README.md").read_text() == pages.page()
    for one in kinds().values():  # descriptions may be behind
        assert shape(json.loads((FOLDER / pages.file_name(one)).read_text())) == shape(one.schema())


def test_a_changed_document_asks_for_a_version(tmp_path: Path) -> None:
    pages.write(tmp_path)
    kept = tmp_path / "health-1.0.json"
    kept.write_text(kept.read_text().replace('"healthy"', '"well"'))
    with pytest.raises(InputError, match=r"health documents have changed, and are still .* 1\.0"):
        pages.write(tmp_path)


def test_the_command() -> None:
    assert "result   1.5" in CliRunner().invoke(app, ["schema"]).output
    said = CliRunner().invoke(app, ["schema", "health"])
    assert json.loads(said.output) == kinds()["health"].schema()
    wrong = CliRunner().invoke(app, ["schema", "helth"])
    assert wrong.exit_code == 2 and "did you mean health?" in wrong.output


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(TypeError, match="no schema is known for <class 'complex'>"):
        Schemas({"type": "number"}).of(complex)
