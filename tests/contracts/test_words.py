"""What messages tell people to type can be typed; test_remedies.py types it."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from jaxllama.errors import InputError, argument, join_problems

ROOT = Path(__file__).parents[2]
# Arguments of functions that no command has: what is said of them stands in Python's words alone.
PYTHON_ALONE = {"every"}


def options() -> set[str]:
    """Return the options of all commands of both programs."""
    found: set[str] = set()
    for program in ("jaxllama", "parity"):
        group = typer.main.get_command(importlib.import_module(f"{program}.cli").app)
        for command in group.commands.values():  # type: ignore[attr-defined]
            for parameter in command.params:
                found.update(parameter.opts)
    return found


def literals(kind: type[ast.AST]) -> Iterator[tuple[Path, Any]]:
    for package in ("jaxllama", "parity"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, kind):
                    yield path, node


def marked() -> set[str]:
    """Return the names of the arguments that messages say."""
    return {
        node.args[0].value
        for _, node in literals(ast.Call)
        if isinstance(node.func, ast.Name)
        and node.func.id == "argument"
        and isinstance(node.args[0], ast.Constant)
    }


def test_every_argument_that_is_said_is_an_option() -> None:
    known, names = options(), marked()
    assert {"dtypes", "modes", "length", "valid", "overwrite"} <= names
    said = {name: InputError(argument(name)).command for name in names}
    assert {name for name, option in said.items() if option not in known} == set()
    assert InputError(argument("dtyps")).command not in known


COMMAND = re.compile(r"`((?:jaxllama|parity) [a-z][^`|]*)`")
PLACES = {"CHECKPOINT": "tiny", "ID": "M01"}


def test_every_command_that_is_said_parses() -> None:
    found = {
        (path.name, command)
        for path, node in literals(ast.Constant)
        if isinstance(node.value, str)
        for command in COMMAND.findall(node.value)
    }
    assert len(found) > 5
    wrong = {one: why for one in found if (why := unparsable(one[1])) and not is_open(why)}
    assert wrong == {}
    assert "No such option" in str(unparsable("parity lint --masks x"))


def is_open(why: str) -> bool:
    """Whether a command is said without what it is to be given, as one says it in a sentence."""
    return "Missing" in why or "requires an argument" in why


def unparsable(command: str) -> str | None:
    program, verb, *arguments = shlex.split(command)
    group = typer.main.get_command(importlib.import_module(f"{program}.cli").app)
    if verb not in group.commands:  # type: ignore[attr-defined]
        return f"no verb {verb}"
    try:
        given = [PLACES.get(word, word) for word in arguments]
        group.commands[verb].make_context(verb, given)  # type: ignore[attr-defined]
    except Exception as error:  # click's own, whichever copy of it typer carries
        return f"{error}" or type(error).__name__
    return None


@pytest.mark.parametrize(
    ("message", "python", "command"),
    [
        (argument("modes", "grad"), "modes='grad'", "--mode grad"),
        (argument("length", 5), "length=5", "--length 5"),
        (argument("stream", True), "stream=True", "--stream"),
        (argument("max_new_tokens"), "max_new_tokens", "--max-tokens"),
        (argument("padding_side", "a b"), "padding_side='a b'", "--padding-side a b"),
        ("plain", "plain", "plain"),
    ],
)
def test_an_argument_is_said_as_its_asker_says_it(message: str, python: str, command: str) -> None:
    error = InputError(join_problems("title", [message, f"again {message}"]))
    for said, word in ((str(error), python), (error.command, command)):
        assert said.splitlines()[1:] == [f"  - {word}", f"  - again {word}"]
    assert InputError(f"outer: {error.marked}").command.count(command) == 2
