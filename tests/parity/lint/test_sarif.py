"""SARIF: what the standard's schema and its prose ask of a file; nothing found is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from sarif_kit.validate import validation_errors
from typer.testing import CliRunner

from jaxllama.errors import InputError
from parity.commands.lint import lint_command
from parity.lint.rule import catalogue

app = typer.Typer()
app.command("lint")(lint_command)
# Characters that a URI may consist of (RFC 3986, sections 2.1 to 2.3).
URI = re.compile(r"(?:[\w.~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-F]{2})*", re.ASCII)


def faults_of(document: dict[str, Any]) -> list[str]:
    """Return where a document departs from SARIF's schema, or says what it does not hold."""
    return validation_errors(document) or list(_dangling(document))


def _dangling(document: dict[str, Any]) -> Iterator[str]:
    """Yield what no schema can ask for: indices that lead somewhere, well-formed references."""
    for run in document["runs"]:
        ids = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        if len(set(ids)) < len(ids):
            yield "two rules with one id"
        files = [artifact["location"]["uri"] for artifact in run.get("artifacts", [])]
        for uri in files:
            if not URI.fullmatch(uri):
                yield f"{uri} is no URI reference"
        for result in run["results"]:
            if ids[result["ruleIndex"]] != result["ruleId"]:
                yield "ruleIndex and ruleId disagree"
            for location in result["locations"]:
                physical = location.get("physicalLocation")
                if physical is None and not location.get("logicalLocations"):
                    yield "a location without a place"
                elif physical is not None:
                    artifact = physical["artifactLocation"]
                    if files[artifact["index"] :][:1] != [artifact["uri"]]:
                        yield "a location in no artifact"


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
    assert code == 1 and faults_of(document) == []
    (run,) = document["runs"]
    (result,) = run["results"]
    assert result["level"] == "error" and "query 0" in result["message"]["text"]
    (location,) = result["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == path.as_uri()
    assert location["logicalLocations"][0]["name"] == "row 0, query 0, key 1"
    assert result["occurrenceCount"] == 6
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(catalogue())
    assert rules[result["ruleIndex"]]["help"]["markdown"].startswith(f"# {result['ruleId']}: ")


def test_several_findings_in_a_file_that_needs_quoting(
    written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = np.tril(np.ones((2, 1, 5, 5), np.float32))
    seen[:, :, 0] = 0
    np.save("a mäsk #1 at 50%.npy", seen)
    code, document = written("a mäsk #1 at 50%.npy", "--use", "additive")
    assert code == 1 and faults_of(document) == []
    (run,) = document["runs"]
    assert [result["ruleId"] for result in run["results"]] == ["M01", "M05"]
    assert run["artifacts"] == [{"location": {"uri": "a%20m%C3%A4sk%20%231%20at%2050%25.npy"}}]


def test_a_spec_has_no_file_to_point_at(written) -> None:
    code, document = written("causal() & window(3) | prefix(2)", "--queries", "5")
    assert code == 1 and faults_of(document) == []
    (run,) = document["runs"]
    assert "artifacts" not in run and "physicalLocation" not in run["results"][0]["locations"][0]


def test_a_clean_mask_has_no_results(written) -> None:
    code, document = written("causal()", "--queries", "5")
    assert code == 0 and faults_of(document) == []
    assert document["runs"][0]["results"] == []


def test_a_path_is_refused_beforehand(tmp_path: Path) -> None:
    arguments = ["causal()", "--queries", "5", "--sarif", str(tmp_path / "missing" / "out")]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, InputError) and "make it first" in str(error)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda d: d.update(version="2.0"), "version"),
        (lambda d: d["runs"][0]["tool"]["driver"].pop("name"), "'name' is a required"),
        (lambda d: d["runs"][0]["results"][0].update(message={}), "message"),
        (lambda d: d["runs"][0]["results"][0].update(level="fatal"), "level"),
        (lambda d: d["runs"][0]["results"][0].update(colour="red"), "'colour' was unexpected"),
        (lambda d: d["runs"][0]["results"][0].update(ruleIndex=0, ruleId="W02"), "disagree"),
        (lambda d: d["runs"][0]["results"][0].update(locations=[{}]), "without a place"),
        (lambda d: d["runs"][0].update(artifacts=[]), "in no artifact"),
        (lambda d: d["runs"][0]["artifacts"][0]["location"].update(uri="a b"), "no URI"),
    ],
)
def test_a_broken_document_is_noticed(written, tmp_path: Path, break_it, said: str) -> None:
    path = tmp_path / "mask.npy"
    np.save(path, np.ones((1, 1, 4, 4), bool))
    _, document = written(str(path))
    break_it(document)
    assert any(said in fault for fault in faults_of(document))
