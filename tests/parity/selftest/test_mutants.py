"""Mutants: the rules that make them, how they are put in place, reached, graded and counted."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from terminals import check_verdict_last, terminal_lines, unreadable

from jaxllama import rope
from jaxllama.errors import InputError
from parity import cli
from parity.selftest.mutants import examine, oracles, population
from parity.selftest.mutants.cells import real_cells
from parity.selftest.mutants.examine import MutantResult, is_the_checkers, summary_of
from parity.selftest.mutants.forms import OriginalForms
from parity.selftest.mutants.patch import NotLive, install
from parity.selftest.mutants.population import (
    Population,
    examine_population,
    known_results,
    read_document,
)
from parity.selftest.mutants.reach import is_reached, lines_run
from parity.selftest.mutants.report import show
from parity.selftest.mutants.rules import MODULES, Mutant, mutants_of, mutated_tree, source_of

SOURCE = '''
"""A module to edit."""
import numpy as np


def area(width, height, *, axis=-1):
    """Multiply, and say so."""
    if width < 0:
        raise ValueError(f"width {width + 1}")
    if width is None and not height:
        return -width
    for side in (width, height):
        width = width + side[1:]
    total = np.sum(np.float32(width * height), axis=axis)
    return np.einsum("ab->ba", total) if axis else 2.5


def idle(x):
    return x + 1
'''


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "mutated_sample.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("mutated_sample")
    del sys.modules["mutated_sample"]


def test_rules_edit_what_computes(sample: ModuleType) -> None:
    made = mutants_of("mutated_sample")
    found = {(m.rule, m.before, m.after) for m in made}
    for expected in [
        ("operator", "width * height", "width / height"),
        ("operator", "width * height", "height"),
        ("unary", "not height", "height"),
        ("constant", "2.5", "5.0"),
        ("comparison", "width is None", "width is not None"),
        ("boolean", "width is None and (not height)", "width is None or not height"),
        ("contraction", "'ab->ba'", "'ab->ab'"),
        ("arguments", "np.einsum('ab->ba', total)", "np.einsum(total, 'ab->ba')"),
        ("call", "np.float32(width * height)", "width * height"),
        ("dtype", "np.float32", "np.bfloat16"),
        ("insertion", "x + 1", "-(x + 1)"),
        ("name", "width", "total"),
    ]:
        assert expected in found, expected
    axes = {m.after for m in made if m.rule == "axis"}
    assert axes == {f"np.sum(np.float32(width * height), axis={axis})" for axis in (0, -2)}
    assert {m.after for m in made if m.rule == "slice"} == {"1 + 1:", ":"}
    (loop,) = (m for m in made if m.rule == "loop")
    assert "list((width, height))[:-1]" in loop.after
    assert {m.rule for m in made} == set(_RULES)
    assert {m.function for m in made} == {"area", "idle"}
    # What is only said, checked or given by default is no computing.
    assert not any("ValueError" in m.before or "width < 0" in m.before for m in made)
    assert not any("A module" in m.before or "Multiply" in m.before for m in made)


_RULES = (
    *("operator", "unary", "constant", "comparison", "boolean", "axis", "contraction", "slice"),
    *("arguments", "call", "dtype", "branch", "loop", "insertion", "name"),
)


def test_a_mutant_is_one_edit_of_its_module() -> None:
    original = ast.unparse(ast.parse(source_of("jaxllama.rope")))
    trees = set()
    for mutant in mutants_of("jaxllama.rope"):
        text = ast.unparse(mutated_tree(mutant))
        compile(text, "rope", "exec")
        assert text != original, mutant.name
        trees.add(text)
    assert len(trees) > 100
    with pytest.raises(LookupError):
        mutated_tree(replace(mutant, number=100_000))


def test_every_module_has_mutants() -> None:
    for module in MODULES:
        assert len(mutants_of(module)) > 30, module


def _mutant(module: str, holds: Callable[[Mutant], bool]) -> Mutant:
    return next(mutant for mutant in mutants_of(module) if holds(mutant))


def test_whoever_holds_a_function_runs_the_mutant(sample: ModuleType) -> None:
    held = sample.idle
    assert held(1) == 2
    install(_mutant("mutated_sample", lambda m: m.before == "x + 1" and m.after == "x - 1"))
    assert held(1) == 0 and sample.idle is held
    with pytest.raises(NotLive):
        install(replace(_mutant("mutated_sample", lambda m: True), function="nowhere"))


def test_a_mutant_of_a_line_that_does_not_run_is_not_reached(sample: ModuleType) -> None:
    path = sys.modules["jaxllama.rope"].__file__
    config = oracles.default_checkpoint().config
    with lines_run() as lines:
        rope.inv_freq(config)
    assert any(file == path for file, _ in lines)
    plain = _mutant("jaxllama.rope", lambda m: "config.rope_theta" in m.before)
    turned = _mutant("jaxllama.rope", lambda m: "second" in m.before)
    assert is_reached(plain, lines) and not is_reached(turned, lines)


def test_differences_are_found_in_the_order_of_the_flow() -> None:
    one = {"0.embed": np.ones(3), "0.layers.0.q_proj": np.ones(3), "0.mask": np.ones(2)}
    assert oracles.first_difference(one, dict(one), 1e-9) is None
    other = one | {"0.layers.0.q_proj": np.full(3, 1 + 1e-6)}
    assert oracles.first_difference(one, other, 1e-9) == ("layers.0.q_proj", 0)
    assert oracles.first_difference(one, other, 1e-3) is None
    # A mask that differs is the first only where nothing that is computed of it does.
    wrong = other | {"0.mask": np.zeros(2)}
    assert oracles.first_difference(one, wrong, 1e-9) == ("layers.0.q_proj", 0)
    assert oracles.first_difference(one, one | {"0.mask": np.zeros(2)}, 1e-9) == ("mask", 0)
    assert oracles.differs(np.array([np.nan]), np.array([1.0]), 1.0)
    assert oracles.differs(np.ones(2), np.ones(3), 1.0)
    assert not oracles.differs(None, np.ones(3), 1.0)


def test_cells_of_pads_and_hidden_keys_do_not_count() -> None:
    checkpoint = oracles.default_checkpoint()
    inputs = oracles.fresh_inputs(checkpoint)[0]
    B, T = inputs.tokens.shape
    shown = {
        "0.layers.0.q_proj": np.ones((B, T, 6, 10)),
        "0.layers.0.attn_scores": np.ones((B, 6, T, T)),
        "0.rope.inv_freq": np.ones(5),
    }
    kept = real_cells(shown, inputs)
    assert kept["0.layers.0.q_proj"].sum() == inputs.valid.sum() * 60
    assert kept["0.layers.0.attn_scores"].sum() == 6 * inputs.mask[inputs.valid].sum()
    assert kept["0.rope.inv_freq"].sum() == 5


def _result(**fields: Any) -> MutantResult:
    mutant = Mutant("jaxllama.rope", "f", 1, "operator", 0, "a", "b", (1, 1))
    return replace(MutantResult(mutant, "judged"), **fields)


def test_figures_count_what_is_not_equivalent() -> None:
    place = ("embed", "0", "causal", "free", "f64")
    found = {"detected": True, "found": place, "expected": ("embed", "0")}
    rows = [
        _result(**found, explained="full"),
        _result(**found, explained="none"),
        _result(equivalent=True),
        _result(outcome="crash"),
        _result(outcome="refused"),
    ]
    sums = summary_of(rows)
    assert (sums["mutants"], sums["crash"], sums["refused"], sums["equivalent"]) == (5, 1, 1, 1)
    assert (sums["not_equivalent"], sums["detected"], sums["placed"], sums["full"]) == (2, 2, 2, 1)
    assert sums["caught_by"] == {"crash": 1, "free embed": 2, "refused": 1}
    population = Population(0, "", 9, 9, rows)
    assert population.passed
    for bad in (
        _result(explained="none"),  # not detected
        _result(**found, explained="wrong"),
        _result(**found, equivalent=True),  # an alarm
        _result(outcome="broken"),
    ):
        assert not replace(population, results=[*rows, bad]).passed
    assert not _result(**(found | {"expected": ("mask", "0")})).placed


def test_a_terminal_of_40_columns_shows_all_of_it() -> None:
    missed = _result(explained="none")
    tabled = replace(missed, mutant=replace(missed.mutant, module="jaxllama.tokenizer.bpe"))
    found = Population(0, "", 9, 9, [missed, tabled])
    assert unreadable(lambda console: show(found, console)) == []
    check_verdict_last(lambda console: show(found, console))
    quiet = terminal_lines(lambda console: show(found, console, quiet=True), 250)
    assert len(quiet) == 4 and quiet[0].startswith("2 mutants of 9 (seed 0): ")
    assert all(line.startswith("NOT DETECTED: ") for line in quiet[2:])


def test_an_exception_of_the_checker_is_none_of_the_mutant() -> None:
    assert is_the_checkers(["parity/diagnose/edits/trial.py:9", "parity/runner/run.py:1"])
    for where in (
        ["<mutant>:9", "parity/subjects/jaxllama/run.py:66"],
        ["jaxllama/rope.py:77", "<mutant>:3"],
        ["parity/subjects/jaxllama/run.py:172"],
        [],
    ):
        assert not is_the_checkers(where)


def test_a_population_is_examined_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "mutants.json"
    command = [sys.executable, "-m", "parity", "selftest", "--mutants", "2", "--seed", "5"]
    # Of tokenizers, which need no model; `make mutants` examines forty of all groups.
    command += ["--group", "tokens", "--jobs", "2", "--json", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "2 mutants of " in found.stdout
    document = json.loads(path.read_text())
    assert document["summary"]["mutants"] == 2 and document["seed"] == 5
    # Begun again, what the file holds of the same source and seed is not done again.
    sample = Population(5, document["source_sha256"], 0, 0)
    kept = list(known_results(read_document(path), sample).values())
    written = json.loads(json.dumps(replace(sample, results=kept).to_dict()))
    assert written["mutants"] == document["mutants"]
    assert known_results(read_document(path), replace(sample, seed=6)) == {}
    assert known_results(read_document(path), replace(sample, digest="another")) == {}
    assert read_document(tmp_path / "none.json") == {}


def _ended(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object], asleep: float) -> str:
    """Return what becomes of a mutant that has a second of a processor."""
    for name, value in (("SECONDS", 1.0), ("MOST_SECONDS", 1.0), ("ASLEEP_TIMES", asleep)):
        monkeypatch.setattr(population, name, value)
    monkeypatch.setattr(examine, "examine", lambda *_: work())
    mutant = _mutant("jaxllama.rope", lambda _: True)
    one = population._Running(mutant, OriginalForms({}, 0.0), Path())
    while (found := one.result()) is None:
        time.sleep(0.05)
    return found.outcome


def _busy() -> None:
    while True:
        pass


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_a_time_out_is_of_the_mutant_and_not_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged = MutantResult(_mutant("jaxllama.rope", lambda _: True), "judged")

    def kept_waiting() -> MutantResult:
        time.sleep(1.5)
        return judged

    assert _ended(monkeypatch, kept_waiting, 20.0) == "judged"
    assert _ended(monkeypatch, kept_waiting, 1.0) == "timeout"
    assert _ended(monkeypatch, _busy, 60.0) == "timeout"
    assert _ended(monkeypatch, lambda: os._exit(3), 20.0) == "crash"


@pytest.mark.parametrize("text", ["garbage", "[]", '{"injections": []}', '{"mutants": [{"a": 1}]}'])
def test_a_file_of_something_else_is_refused_before_anything_runs(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"other\.json: holds no results of mutants"):
        examine_population(1, 0, path=path, progress=lambda *_: None)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mutants", "2", "--quick"], "--mutants: injects no listed fault"),
        (["--seed", "3"], "--seed 3: only --mutants takes one"),
        (["--group", "tokens"], "--group tokens: only --mutants takes one"),
        (["--mutants", "2", "--group", "x"], "--group x: expected one or more of model, writing"),
        (["--mutants", "0"], "Invalid value for '--mutants'"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["parity", "selftest", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
