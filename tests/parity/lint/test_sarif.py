"""SARIF: what the standard requires of a file, and that nothing found is left out of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from jaxllama.errors import InputError
from parity.lint.command import lint_command
from parity.lint.rule import catalogue

app = typer.Typer()
app.command("lint")(lint_command)
LEVELS = {"none", "note", "warning", "error"}


def faults_of(document: dict[str, Any]) -> Iterator[str]:
    """Yield where a document departs from what SARIF 2.1.0 requires (sections 3.13 to 3.52)."""
    if document.get("version") != "2.1.0" or not isinstance(document.get("runs"), list):
        yield "not a log of version 2.1.0"
        return
    for run in document["runs"]:
        driver = run.get("tool", {}).get("driver", {})
        if not driver.get("name"):
            yield "a run without tool.driver.name"
        rules = driver.get("rules", [])
        ids = [rule.get("id") for rule in rules]
        if None in ids or len(set(ids)) < len(ids):
            yield "rules without an id, or two with one"
        for rule in rules:
            texts = [rule.get(k, {}) for k in ("shortDescription", "fullDescription", "help")]
            if not all(text.get("text") for text in texts):
                yield f"{rule.get('id')}: a description without text"
            if rule.get("defaultConfiguration", {}).get("level") not in LEVELS:
                yield f"{rule.get('id')}: no known level"
        if any("executionSuccessful" not in one for one in run.get("invocations", [])):
            yield "an invocation that does not say whether it succeeded"
        for result in run["results"]:
            yield from _result_faults(result, ids, len(run.get("artifacts", [])))


def _result_faults(result: dict[str, Any], ids: list[str], artifacts: int) -> Iterator[str]:
    if not result.get("message", {}).get("text"):
        yield "a result without message.text"
    if ids[result.get("ruleIndex", 0)] != result.get("ruleId"):
        yield "ruleIndex and ruleId disagree"
    if result.get("level") not in LEVELS:
        yield "a result of no known level"
    if result.get("occurrenceCount", 1) < 1:
        yield "a result that occurs nowhere"
    for location in result.get("locations", []):
        physical = location.get("physicalLocation", {})
        artifact = physical.get("artifactLocation", {})
        if artifact.get("index", -1) >= artifacts or "\\" in artifact.get("uri", ""):
            yield "a location in no artifact"
        if physical.get("region", {}).get("startLine", 1) < 1:
            yield "lines count from 1"
        if not physical and not location.get("logicalLocations"):
            yield "a location without a place"


@pytest.fixture
def written(tmp_path: Path):
    def write(*arguments: str) -> tuple[int, dict[str, Any]]:
        out = tmp_path / "out.sarif"
        ran = CliRunner().invoke(app, [*arguments, "--sarif", str(out)])
        return ran.exit_code, json.loads(out.read_text())

    return write


def test_a_faulty_file(written, tmp_path: Path) -> None:
    path = tmp_path / "mask.npy"
    np.save(path, np.ones((1, 1, 4, 4), bool))
    code, document = written(str(path))
    assert code == 1 and list(faults_of(document)) == []
    (run,) = document["runs"]
    (result,) = run["results"]
    assert result["level"] == "error" and "query 0" in result["message"]["text"]
    (location,) = result["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == path.as_posix()
    assert location["logicalLocations"][0]["name"] == "row 0, query 0, key 1"
    assert result["occurrenceCount"] == 6
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(catalogue())
    assert rules[result["ruleIndex"]]["help"]["markdown"].startswith(f"# {result['ruleId']}: ")


def test_a_spec_has_no_file_to_point_at(written) -> None:
    code, document = written("causal() & window(3) | prefix(2)", "--queries", "5")
    assert code == 1 and list(faults_of(document)) == []
    (run,) = document["runs"]
    assert "artifacts" not in run and "physicalLocation" not in run["results"][0]["locations"][0]


def test_a_clean_mask_has_no_results(written) -> None:
    code, document = written("causal()", "--queries", "5")
    assert code == 0 and list(faults_of(document)) == []
    assert document["runs"][0]["results"] == []


def test_a_path_is_refused_beforehand(tmp_path: Path) -> None:
    arguments = ["causal()", "--queries", "5", "--sarif", str(tmp_path / "missing" / "out")]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, InputError) and "make it first" in str(error)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda d: d.update(version="2.0"), "version 2.1.0"),
        (lambda d: d["runs"][0]["tool"]["driver"].pop("name"), "driver.name"),
        (lambda d: d["runs"][0]["results"][0].update(message={}), "message.text"),
        (lambda d: d["runs"][0]["results"][0].update(ruleIndex=0, ruleId="W02"), "disagree"),
        (lambda d: d["runs"][0]["results"][0].update(level="fatal"), "known level"),
        (lambda d: d["runs"][0]["results"][0].update(locations=[{}]), "without a place"),
    ],
)
def test_a_broken_document_is_noticed(written, break_it, said: str) -> None:
    _, document = written("causal() & window(3) | prefix(2)", "--queries", "5")
    break_it(document)
    assert any(said in fault for fault in faults_of(document))
