"""A saved result says what it must contain, and whatever else it holds is one clear error."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from records import result, row
from typer.testing import CliRunner

import parity
from jaxllama.errors import InputError
from parity.cli import app
from parity.report import json_file
from parity.taps import expected_names

ROWS = [
    row("layers.0.q_proj"),
    row("logits"),
    row("layers.0.q_proj", lane="bf16"),
    row("logits", lane="bf16", rho=40.0, limit=16.0, error=0.1, noise=0.0055),
]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("saved") / "result.json"
    json_file.write(result(ROWS), path)
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def saved(document: Any, folder: Path) -> Path:
    path = folder / "changed.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_rows_that_are_missing_are_missed(
    document: dict[str, Any], tmp_path: Path, left: int
) -> None:
    fewer = {**document, "taps": document["taps"][:left]}
    with pytest.raises(InputError, match=r"changed\.json: holds .*, its coverage says"):
        parity.recheck(saved(fewer, tmp_path))
    assert parity.recheck(saved(document, tmp_path)).verdict == "divergent"


def test_rows_told_twice_are_refused(document: dict[str, Any], tmp_path: Path) -> None:
    more = {**document, "taps": [*document["taps"], document["taps"][0]]}
    with pytest.raises(InputError, match="holds 3 rows of f64 causal free, its coverage says 2"):
        parity.recheck(saved(more, tmp_path))


def test_a_row_in_another_s_place_is_refused(document: dict[str, Any], tmp_path: Path) -> None:
    taps = document["taps"]
    doubled = {**document, "taps": [taps[0], taps[1], taps[2], taps[2]]}
    with pytest.raises(InputError, match=r"holds layers\.0\.q_proj bf16 causal free 0 twice"):
        parity.recheck(saved(doubled, tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("runs", ..., "does not say how many rows"),
        ("witnesses", ..., "does not say how many rows"),
        ("expected", 1, "holds 2 taps, 1 were expected"),
    ],
)
def test_what_says_too_little_is_refused(
    document: dict[str, Any], tmp_path: Path, field: str, value: Any, said: str
) -> None:
    coverage = {**document["coverage"], field: value}
    coverage = {k: v for k, v in coverage.items() if v is not ...}
    with pytest.raises(InputError, match=said):
        parity.recheck(saved({**document, "coverage": coverage}, tmp_path))


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"rho": -1.0}, "rho -1, expected 0 or more"),
        ({"error": "inf", "noise": "inf"}, "error inf over noise inf is not rho 0.5"),
        ({"rho": 10**400}, "expected float"),
    ],
)
def test_figures_that_no_comparison_gives_are_refused(
    document: dict[str, Any], tmp_path: Path, figures: dict[str, Any], said: str
) -> None:
    taps = [{**document["taps"][0], **figures}, *document["taps"][1:]]
    with pytest.raises(InputError, match=said):
        parity.recheck(saved({**document, "taps": taps}, tmp_path))
    again = json.dumps(document)[:-1] + ', "taps": []}'
    (tmp_path / "twice.json").write_text(again)
    with pytest.raises(InputError, match="'taps' occurs twice"):
        parity.recheck(tmp_path / "twice.json")


def test_taps_of_the_model_that_are_left_out_are_missed(tmp_path: Path) -> None:
    """Though coverage was changed with them: the configuration says how many layers there are."""
    rows = [row(name) for name in expected_names(2)]
    whole = result(rows, checkpoint={"config": {"num_hidden_layers": 2}})
    assert whole.verdict == "equal"
    json_file.write(whole, tmp_path / "whole.json")
    found = parity.recheck(tmp_path / "whole.json")
    assert (found.verdict, found.unmatched) == ("equal", ())
    fewer = dataclasses.replace(whole, rows=rows[:-1], expected=41)
    json_file.write(fewer, tmp_path / "fewer.json")
    found = parity.recheck(tmp_path / "fewer.json")
    assert (found.verdict, found.unmatched) == ("inconclusive", ("logits",))
    assert found.not_run[:3] == ("isolated", "decode", "gradients")
    endless = dataclasses.replace(whole, checkpoint={"config": {"num_hidden_layers": 10**12}})
    json_file.write(endless, tmp_path / "endless.json")
    with pytest.raises(InputError, match="num_hidden_layers 1000000000000, expected a count"):
        parity.recheck(tmp_path / "endless.json")


def test_nothing_compared_is_never_equal(document: dict[str, Any], tmp_path: Path) -> None:
    empty = copy.deepcopy(document) | {"taps": [], "witnesses": [], "first_divergence": None}
    empty["coverage"] |= {"compared": 0, "runs": {}, "witnesses": {}}
    again = CliRunner().invoke(app, ["recheck", str(saved(empty, tmp_path))])
    assert again.exit_code == 3
    assert again.output.startswith("inconclusive: 0 taps")
    assert "nothing was compared" in again.output
    assert result([]).verdict == "inconclusive"


WRONG = (None, -1, 1e400, "\x1b[2Jx", "\ud800", [], {})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every part of a document."""
    if path:
        yield path
    parts: Any = value.items() if isinstance(value, dict) else ()
    parts = list(enumerate(value))[:2] if isinstance(value, list) else parts
    for key, part in parts:
        yield from places(part, (*path, key))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    copied = copy.deepcopy(document)
    holder = copied
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return copied


def test_no_change_of_a_part_is_an_internal_error(document: dict[str, Any], tmp_path: Path) -> None:
    tried, values = 0, itertools.cycle(WRONG)
    for path in places(document):
        # All at what decides a verdict, two at the rest; `make fuzz` tries more.
        for value in WRONG if len(path) == 1 else itertools.islice(values, 2):
            tried += 1
            target = saved(changed(document, path, value), tmp_path)
            code = CliRunner().invoke(app, ["recheck", str(target)]).exit_code
            assert code in (0, 1, 2, 3), (path, value)
            assert code == 2 or path != ("taps",), value
    assert tried > 200
