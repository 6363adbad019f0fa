"""The rules' documentation, made from the rule files: `python -m parity.lint.pages docs/lint`."""

from __future__ import annotations

import sys
import textwrap
from functools import cache
from pathlib import Path

from jaxllama.errors import on_the_command_line
from parity.lint.report import drawing
from parity.lint.rule import RuleFile, catalogue

_INDEX = "README.md"


def page(file: RuleFile) -> str:
    """Return one rule's page as Markdown, with what its mutant makes it say."""
    rule, mutant = file.rule, file.mutant()
    said = next(finding for finding in file.check(mutant) if finding.rule == rule.id)
    message = on_the_command_line(said.message)
    sections = [
        f"# {rule.id}: {rule.name}",
        f"Severity: {rule.severity}. {_kind(rule.kind)}",
        f"## What it checks\n\n{rule.checks}",
        f"## Why it is bad\n\n{rule.why}",
        f"## Example\n\n```python\n{rule.example}\n```",
        f"It says, of its own example:\n\n```text\n{_wrapped(message)}\n```",
    ]
    picture = "\n".join(drawing(mutant)) if rule.kind == "static" else ""
    if picture:
        sections.append(f"```text\n{picture}\n```")
    sections.append(f"## What to do\n\n{_capital(on_the_command_line(rule.remedy))}.")
    if rule.sources:
        sections.append(f"## Seen in\n\n{', '.join(rule.sources)}")
    return "\n\n".join(sections) + "\n"


@cache
def pages() -> dict[str, str]:
    """Return every page, and an index, by file name."""
    made = {f"{rule_id}.md": page(file) for rule_id, file in catalogue().items()}
    lines = [
        "# Mask rules",
        "",
        "Made from `parity/lint/rules` by `python -m parity.lint.pages docs/lint`; edit there.",
        "",
        "| rule | fault | severity | kind |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| [{f.rule.id}]({f.rule.id}.md) | {f.rule.name} | {f.rule.severity} | {f.rule.kind} |"
        for f in catalogue().values()
    ]
    return {**made, _INDEX: "\n".join(lines) + "\n"}


def _kind(kind: str) -> str:
    return "Reads a mask." if kind == "static" else "Runs an attention."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _wrapped(text: str, width: int = 96) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Write the pages into the directory given."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
