"""What the two commands say of themselves: help, version, completion, names that they know."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from parity.commands import catalogue
from parity.quality.measures import NAMES
from parity.runner.plan import MODES
from parity.scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]
PROGRAMS = ("jaxllama", "parity")


def group_of(program: str) -> Any:
    return typer.main.get_command(importlib.import_module(f"{program}.cli").app)


VERBS = [(program, verb) for program in PROGRAMS for verb in ("", *group_of(program).commands)]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs a command in this process: its code and output."""

    def run(program: str, *words: str, columns: int = 100) -> tuple[int, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", [program, *words])
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(f"{program}.cli").main()
        return stopped.value.code or 0, capsys.readouterr().out

    return run


def examples_in(text: str) -> list[list[str]]:
    """Return the command lines below `Examples:`."""
    below = text.partition("Examples:\n")[2].splitlines()
    return [shlex.split(line) for line in below if line.startswith("  ")]


def unparsable(words: list[str]) -> str | None:
    """Return why an example would be refused, None if it would run."""
    program, verb, *arguments = words
    group = group_of(program)
    if verb not in group.commands:
        return f"{program} has no verb {verb}"
    try:
        group.commands[verb].make_context(verb, arguments, parent=group.context_class(group))
    except typer.Exit:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize(("program", "verb"), VERBS)
def test_help_has_examples_that_parse(say, program: str, verb: str) -> None:
    code, text = say(program, *filter(None, [verb]), "-h")
    assert code == 0 and text == say(program, *filter(None, [verb]), "--help")[1]
    shown = examples_in(text)
    assert shown, text
    for words in shown:
        assert words[0] == program and (not verb or words[1] == verb)
        assert unparsable([word for word in words if word not in ("--help",)]) is None, words


def test_an_example_that_does_not_parse_is_noticed() -> None:
    assert unparsable(["parity", "run", "tiny", "--no-such"]) is not None
    assert unparsable(["parity", "rum", "tiny"]) is not None


@pytest.mark.parametrize(("program", "verb"), VERBS)
def test_help_is_readable_in_forty_columns(say, program: str, verb: str) -> None:
    _, text = say(program, *filter(None, [verb]), "--help", columns=40)
    body = text.partition("Examples:")[0]
    assert max(map(len, body.splitlines())) <= 40
    assert "…" not in text and "│" not in text
    _, wide = say(program, *filter(None, [verb]), "--help", columns=400)
    options = [word for word in wide.split() if word.startswith("--")]
    assert len(options) > 3
    assert not [option for option in options if option not in text]


def test_brackets_of_a_help_are_text(say) -> None:
    assert "ORG/MODEL[@REVISION]" in say("parity", "run", "-h", columns=200)[1]


@pytest.mark.parametrize(("program", "verb"), [v for v in VERBS if v[1] in ("", "run", "info")])
def test_version(say, program: str, verb: str) -> None:
    code, text = say(program, *filter(None, [verb]), "--version")
    assert (code, text) == (0, f"{program} {version('jaxllama')}\n")


def test_a_flag_is_itself_alone(say, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags of all verbs are made alike: --debug is neither --version nor --no-cache."""
    monkeypatch.delenv("JAXLLAMA_NO_CACHE", raising=False)
    code, text = say("parity", "--debug", "explain", "M01")
    assert code == 0 and "M01" in text
    assert "JAXLLAMA_NO_CACHE" not in os.environ
    say("parity", "--no-cache", "explain", "M01")
    assert os.environ["JAXLLAMA_NO_CACHE"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_shell_completes_verbs_and_options(program: str) -> None:
    def completed(*words: str) -> str:
        typed = " ".join([program, *words])
        asked = {"COMP_WORDS": typed, "COMP_CWORD": str(len(words))}
        call = f"from {program}.__main__ import script; script()"
        ran = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.argv = [{program!r}]; {call}"],
            env=os.environ | asked | {f"_{program.upper()}_COMPLETE": "complete_bash"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return ran.stdout

    verb = {"parity": "explain", "jaxllama": "verify"}[program]
    assert completed(verb[:-2]).split() == [verb]
    option = {"parity": "--list", "jaxllama": "--manifest"}[program]
    assert option in completed(verb, option[:4]).split()


def test_lists_have_all_that_there_is(say) -> None:
    assert (*catalogue.SCENARIOS,) == SCENARIOS and (*catalogue.MODES,) == MODES
    code, text = say("parity", "explain", "--list", columns=200)
    assert code == 0
    for kind in catalogue.KINDS:
        assert f"{kind}:" in text.splitlines()
        assert all(f"  {name} " in text for name in catalogue.listed(kind))
    metrics = catalogue.listed("metrics")
    assert {"kl_max", "top1_flips", "entropy", "residual", "key_to_value", *NAMES} <= {*metrics}
    assert "rope-theta" in catalogue.listed("causes") and "M01" in catalogue.listed("rules")
    _, some = say("parity", "explain", "--list", "modes", columns=40)
    assert some.splitlines()[0] == "modes:" and "scenarios:" not in some
    assert max(map(len, some.splitlines())) <= 40


def test_facts_of_taps_are_those_that_results_have() -> None:
    """A run of everything has the figures that the list names, and the list all of them."""
    import parity

    run = parity.run("tiny", dtypes="f64", scenarios="causal", length=7, modes="free")
    facts = {name for row in run.rows for name in row.facts}
    of_taps = {*catalogue.TAP_METRICS} - {"error", "noise", "rho", "peak_rho"}
    assert of_taps <= facts


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "tiny", "--scenario", "casual"], "did you mean causal?"),
        (["run", "tiny", "--mode", "isolate"], "did you mean isolated?"),
        (["explain", "--list", "cases"], "did you mean causes?"),
        (["explain", "left_paded"], "did you mean left_padded?"),
        (["explain"], "give the id of a rule or a cause, or --list"),
    ],
)
def test_a_name_that_is_not_known(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["parity", *words])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("parity.cli").main()
    assert stopped.value.code == 2 and said in capsys.readouterr().err
