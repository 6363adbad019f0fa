"""What is checked of the package: its files, bill of materials, Dockerfile, what users copy."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest
import typer
import yaml
from snippets import snippets

from parity.cli import app

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module(name)


def test_a_file_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check = script("check_package", monkeypatch)
    files = ["parity/py.typed", "tests/a.py", ".ci/run"]
    assert check.missing(files, files[:2], files[:1]) == []
    said = check.missing(files, files[:1], [])
    assert [line.split(":")[0] for line in said] == ["tests/a.py", "parity/py.typed"]


def listed(manifest: str, path: str) -> bool:
    """Return whether a manifest takes a file of a folder along."""
    for line in manifest.splitlines():
        kind, *words = line.split() or [""]
        if kind == "recursive-include" and path.startswith(f"{words[0]}/"):
            return any(fnmatch(path.rpartition("/")[2], pattern) for pattern in words[1:])
    return False


def test_every_kind_of_file_goes_into_the_sdist() -> None:
    manifest = (ROOT / "MANIFEST.in").read_text()
    folders = "ci", "docs", "jaxllama", "parity", "scripts", "tests"
    files = [str(f.relative_to(ROOT)) for one in folders for f in (ROOT / one).rglob("*.*")]
    files = [f for f in files if (ROOT / f).is_file() and "__pycache__" not in f]
    assert len(files) > 1000 and [f for f in files if not listed(manifest, f)] == []
    assert not listed(manifest, "scripts/field/a.log") and not listed(manifest, "more/a.py")


@pytest.mark.parametrize("line", ["warning: no files found", "SetuptoolsDeprecationWarning: x"])
def test_a_warning_of_the_build_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = script("check_package", monkeypatch)
    assert check.unclean(f"copying a.py\n{line}\n") == [f"python -m build: {line}"]
    assert check.unclean("copying a.py") == []


def test_a_bill_that_skips_something_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sbom = script("sbom", monkeypatch)
    bill = {
        "metadata": {"component": {"name": "jaxllama", "version": "0.1.0"}},
        "components": [{"name": "ml-dtypes", "version": "0.6.0"}],
    }
    assert sbom.differences(bill, {"jaxllama": "0.1.0", "ml_dtypes": "0.6.0"}) == []
    assert sbom.differences(bill, {"jaxllama": "0.1.0", "ml_dtypes": "0.7.0", "jax": "0.10.0"}) == [
        "jax 0.10.0: installed, not in the bill",
        "ml-dtypes: version '0.6.0' in the bill, '0.7.0' installed",
    ]
    assert "not installed" in sbom.differences(bill, {"jaxllama": "0.1.0"})[0]


def test_examples_are_readmes(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = script("package_examples", monkeypatch)
    readme = (ROOT / "README.md").read_text()
    names = [one.name for one in examples.examples(readme, torch=True)]
    assert sum(name.startswith("README's Python") for name in names) >= 4
    assert len(names) > len(list(examples.examples(readme, torch=False)))
    with pytest.raises(ValueError, match=r"not in README.md: parity explain M01; mend"):
        list(examples.examples(readme.replace("parity explain M01", ""), torch=True))


def test_an_example_that_fails_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = script("package_examples", monkeypatch)
    python = Path(sys.executable)
    right = examples.Example("a", ("python", "-c", "import sys; sys.exit(1)"), 1)
    assert examples.failure(right, python, tmp_path) is None
    wrong = examples.Example("a", ("python", "-c", "print('said')"), 1)
    assert examples.failure(wrong, python, tmp_path) == "exit code 0, expected 1\nsaid"


def test_one_version_is_said_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]


def test_lower_bounds_are_those_that_are_tried() -> None:
    tried = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "ci/oldest.txt").read_text(), re.M))
    extras = PROJECT["optional-dependencies"]
    asked = [
        line for name in ("parity", "quality", "hub", "train") for line in extras[name]
    ] + PROJECT["dependencies"]
    for line in asked:
        name, bound = re.match(r"([\w-]+)>=([\d.]+)", line).groups()  # type: ignore[union-attr]
        known = tried[name.replace("_", "-").lower()]
        assert known == bound or known.startswith(f"{bound}."), line


def test_readmes_links_are_text_on_an_index(tmp_path: Path) -> None:
    code = "import setuptools; setuptools.setup = lambda **said: print(said['long_description'])\n"
    code += (ROOT / "setup.py").read_text().replace("__file__", repr(str(ROOT / "setup.py")))
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    links = re.findall(r"\]\(([^)]+)\)", shown.stdout)
    assert all(link.startswith("https://") for link in links)
    assert "docs/noise.md" in shown.stdout


def test_the_hook_lints_each_file_and_keeps_the_gravest(tmp_path: Path) -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    (hook,) = (one for one in hooks if one["id"] == "parity-lint")
    (tmp_path / "parity").write_text('#!/bin/sh\necho "$@" >> calls\n[ "$2" != faulty.npy ]\n')
    (tmp_path / "parity").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    for names, code in ((["sound.npy"], 0), (["faulty.npy", "sound.npy"], 1)):
        words = [*shlex.split(hook["entry"]), *names]
        assert subprocess.run(words, cwd=tmp_path, env=environment).returncode == code
    called = ["lint sound.npy", "lint faulty.npy", "lint sound.npy"]
    assert (tmp_path / "calls").read_text().splitlines() == called
    assert re.search(hook["files"], "a/mask.npz") and not re.search(hook["files"], "a/mask.py")


def copied_from(place: str) -> list[object]:
    """Return the documents in YAML that users copy: a file, or the blocks of a page."""
    text = (ROOT / place).read_text()
    found = [one.text for one in snippets(text) if one.language == "yaml"]
    return [yaml.safe_load(one) for one in (found if place.endswith(".md") else [text])]


def test_the_tutorials_hooks_are_there() -> None:
    (config,) = (one for one in copied_from("docs/tutorials/in-ci.md") if "repos" in one)
    named = {hook["id"] for repo in config["repos"] for hook in repo["hooks"]}
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert named == {hook["id"] for hook in hooks}


@pytest.mark.parametrize(
    "place", ["docs/ci/parity.yml", ".pre-commit-hooks.yaml", "docs/tutorials/in-ci.md"]
)
def test_what_users_copy_says_commands_that_parse(place: str) -> None:
    copied = copied_from(place)[0]
    jobs = copied["jobs"].values() if "jobs" in copied else ()
    said = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    said += [one["entry"] for one in copied if isinstance(one, dict)]
    ours = [words for line in said if (words := shlex.split(line))[0] == "parity"]
    assert ours
    group = typer.main.get_command(app)
    for _, verb, *rest in ours:
        group.commands[verb].make_context(verb, rest)  # type: ignore[attr-defined]


def test_the_dockerfiles_steps_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    docker = script("check_dockerfile", monkeypatch)
    found = docker.steps((ROOT / "Dockerfile").read_text())
    assert sum(step.instruction == "FROM" for step in found) == 2
    assert all("\n" not in step.rest and "\\" not in step.rest for step in found)
    with pytest.raises(ValueError, match="USER: expected ARG"):
        docker.steps("FROM a\nUSER b")


def test_a_dockerfile_is_run_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker = script("check_dockerfile", monkeypatch)
    text = (
        "FROM a AS one\nWORKDIR /src\nRUN echo \\\n  hello > /src/said\n"
        "FROM a\nARG WHO=you\nCOPY --from=one /src /dist\nRUN echo $WHO >> /dist/said\n"
    )
    last = docker.build(docker.steps(text), {"WHO": "me"}, tmp_path, sys.executable)
    assert (last.place / "dist/said").read_text() == "hello\nme\n"
    with pytest.raises(subprocess.CalledProcessError):
        docker.build(docker.steps("FROM a\nRUN false"), {}, tmp_path / "2", sys.executable)
