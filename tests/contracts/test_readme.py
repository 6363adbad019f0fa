"""README's promises: its Python runs, its commands parse, its links and make targets exist."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from snippets import Step, reading, snippets

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/health.md",
    "docs/independence.md",
    "docs/kv-heads.md",
    "docs/quality.md",
    "docs/quality-example.md",
    "jaxllama/README.md",
    "parity/README.md",
    "parity/report/README.md",
    *(f"docs/tutorials/{path.name}" for path in sorted((ROOT / "docs/tutorials").glob("*.md"))),
)
README = (ROOT / "README.md").read_text()
HEALTH = (ROOT / "docs/health.md").read_text()
QUALITY = (ROOT / "docs/quality.md").read_text()
# A shell's own, and what makes a mask to lint; other programs have no place here.
ACTIVATE = [".", ".venv/bin/activate"]
SAVED = "import numpy; numpy.save('mask.npy', numpy.tril(numpy.ones((1, 1, 6, 6))))"
MASK = ["python", "-c", SAVED]
# The commands that take seconds and need no download, with their exit codes.
QUICK = {
    "parity lint": 1,
    "parity explain": 0,
    "parity probe": 0,
    "parity capture": 0,
    "parity compare": 0,
}
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def blocks(language: str, text: str = README) -> list[str]:
    """Return the fenced blocks of a language."""
    return [one.text for one in snippets(text) if one.language == language]


def commands(text: str = README) -> list[list[str]]:
    """Return the command lines of all shell blocks, split into words."""
    lines = (line for block in blocks("sh", text) for line in block.splitlines())
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def unparsable(words: list[str]) -> str | None:
    """Return why a command line would be refused; None if it would run."""
    if re.fullmatch(r"[A-Z_]+=\w+", words[0]):  # set for this command alone
        return unparsable(words[1:])
    program, *arguments = words
    if words in (ACTIVATE, MASK):
        return None
    if program == "make":
        unknown = set(arguments) - TARGETS
        return f"no target {unknown}" if unknown else None
    if program not in ("jaxllama", "parity"):
        return f"no program {program}"
    group = typer.main.get_command(importlib.import_module(f"{program}.cli").app)
    verb, *arguments = arguments
    if verb not in group.commands:
        return f"{program} has no verb {verb}"
    try:
        group.commands[verb].make_context(verb, list(arguments))
    except Exception as error:  # click's own, whichever copy of it typer carries
        return f"{type(error).__name__}: {error}"
    return None


EXAMPLES = blocks("python") + blocks("python", HEALTH)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_python_examples_run(number: int, tmp_path: Path):
    with reading(tmp_path) as session:
        code, printed = session.do(Step("python", EXAMPLES[number], line=1))
    assert code == 0, printed


def test_there_are_examples():
    assert len(blocks("python")) >= 4
    assert ["make", "test"] in commands()
    assert ["make", "parity"] in commands()


@pytest.mark.parametrize("words", commands() + commands(HEALTH) + commands(QUALITY), ids=" ".join)
def test_commands_parse(words: list[str]):
    assert unparsable(words) is None


def test_quick_commands_run_as_they_stand(tmp_path: Path):
    ran, said = set(), ""
    with reading(tmp_path) as session:
        for words in commands():
            quick = " ".join(words[:2])
            if words != MASK and quick not in QUICK:
                continue
            code, printed = session.do(Step("command", shlex.join(words), line=1))
            assert code == QUICK.get(quick, 0), (words, printed)
            ran.add(quick)
            said += printed
    assert ran - {"python -c"} == set(QUICK)
    assert "error M01" in said


@pytest.mark.parametrize(
    "line", ["make tea", "parity rum tiny", "parity run tiny --no-such-option", "llama run"]
)
def test_a_wrong_command_is_noticed(line: str):
    assert unparsable(line.split()) is not None


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).exists()


def test_the_workflow_for_other_projects_would_run():
    text = (ROOT / "parity/report/README.md").read_text()
    (workflow,) = (yaml.safe_load(block) for block in blocks("yaml", text))
    (job,) = workflow["jobs"].values()
    steps = [shlex.split(step["run"]) for step in job["steps"] if "run" in step]
    ours = [words for words in steps if words[0] == "parity"]
    assert {words[1] for words in ours} == {"run", "lint"}
    assert [unparsable(words) for words in ours] == [None] * len(ours)
    # What one step writes, a later one takes up.
    written = {words[i + 1] for words in ours for i, word in enumerate(words) if word[:2] == "--"}
    taken = [str(v) for step in job["steps"] for v in step.get("with", {}).values()]
    assert all(any(name in said for said in taken) for name in written)


def test_ci_runs_what_readme_says():
    run = (ROOT / ".ci/run").read_text()
    for target in ("lint", "types", "test", "machines", "parity"):
        assert re.search(rf"^make {target}$", run, re.MULTILINE)
