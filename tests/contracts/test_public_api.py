"""What users may lean on: the exported names, their types and docstrings, the two commands."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import jaxllama
import parity

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

# To change this set is to change the interface: say so in CHANGELOG.md.
JAXLLAMA = {
    "PRESETS",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "Generation",
    "InputError",
    "JaxLlamaError",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "RopeScaling",
    "Sampling",
    "Taps",
    "TextGeneration",
    "Tokenizer",
    "convert",
    "generate_text",
    "load_model",
    "next_token_loss",
    "open_checkpoint",
    "preset",
    "save_lora",
    "verify",
}


PARITY = {
    "Result",
    "assert_equal",
    "capture",
    "check_health",
    "compare",
    "measure_quality",
    "recheck",
    "run",
    "write_report",
}
PACKAGES = [(jaxllama, JAXLLAMA), (parity, PARITY)]
both = pytest.mark.parametrize(("package", "names"), PACKAGES, ids=["jaxllama", "parity"])


@both
def test_exported_names(package: ModuleType, names: set[str]):
    assert set(package.__all__) == names
    for name in names:
        assert name in dir(package)
        assert getattr(package, name) is not None
        # No module of the same name may take its place once something imports that module.
        home = Path(str(package.__file__)).parent
        assert not (home / f"{name}.py").exists()
        assert not (home / name).exists()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = package.nonsense


@both
def test_type_checkers_see_the_names_that_are_exported(package: ModuleType, names: set[str]):
    tree = ast.parse(Path(str(package.__file__)).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {name: f"{package.__name__}.{home}" for name, home in package._HOME.items()}
    assert imported == homes
    assert set(imported) == names


def faults_of(owner: ModuleType | type, names: list[str]) -> Iterator[str]:
    """Yield what is missing on the functions and classes that `owner` offers under `names`."""
    for name in names:
        member = getattr(owner, name)
        if not (inspect.isfunction(member) or inspect.isclass(member)):
            continue
        if not inspect.getdoc(member):
            yield f"{name}: no docstring"
        if not inspect.isfunction(member):
            continue
        for parameter in inspect.signature(member).parameters.values():
            if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls"):
                yield f"{name}: no type for {parameter.name}"
        if inspect.signature(member).return_annotation is inspect.Signature.empty:
            yield f"{name}: no return type"


@both
def test_the_interface_is_typed_and_documented(package: ModuleType, names: set[str]):
    assert list(faults_of(package, sorted(names))) == []
    for name in sorted(names):
        member = getattr(package, name)
        if inspect.isclass(member) and not issubclass(member, Exception):
            methods = [
                key
                for key, value in vars(member).items()
                if inspect.isfunction(value) and not key.startswith("_")
            ]
            assert list(faults_of(member, methods)) == [], name


def test_an_undocumented_function_is_noticed():
    module = ModuleType("planted")

    def bare(x):
        return x

    module.bare = bare  # type: ignore[attr-defined]
    assert list(faults_of(module, ["bare"])) == [
        "bare: no docstring",
        "bare: no type for x",
        "bare: no return type",
    ]


@pytest.mark.parametrize("command", SCRIPTS)
def test_commands_are_there_and_explain_themselves(command: str):
    module, _, function = SCRIPTS[command].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    call = f"from {module} import {function}; {function}()"
    code = f"import sys; sys.argv = [{command!r}, '--help']; {call}"
    outcome = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "Usage" in outcome.stdout
    assert outcome.stderr == ""
