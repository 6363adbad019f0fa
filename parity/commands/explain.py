"""`parity explain`: the page of a rule of lint or of health, or of a cause; lists of names."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Iterator
from typing import Annotated

import typer

from jaxllama.errors import InputError, meant
from parity.commands import catalogue
from parity.options import choose


def explain_command(
    rule: Annotated[
        str | None,
        typer.Argument(
            help="A rule's id, such as M05 or entropy-collapse, or a cause's; with --list some of "
            "scenarios, modes, causes, rules, metrics, all if not given."
        ),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="List the names that there are, a line each.")
    ] = False,
) -> None:
    """Print what a rule checks or a cause does, why, and what to do."""
    if listing:
        kinds = choose("list", rule or "all", catalogue.KINDS)
        width = shutil.get_terminal_size().columns
        typer.echo("\n".join(line for kind in kinds for line in _list_lines(kind, width)))
    elif rule is None:
        raise InputError("explain: give the id of a rule or a cause, or --list")
    else:
        typer.echo(explain(rule))


def _list_lines(kind: str, width: int) -> Iterator[str]:
    """Yield a kind's names with what they are, beside each other where there is room."""
    found = catalogue.listed(kind)
    column = max(map(len, found)) + 2
    yield f"{kind}:"
    for name, about in found.items():
        start = f"  {name:<{column}}" if column < width // 2 else f"  {name}: "
        yield from textwrap.wrap(
            start + about,
            max(width - 1, 20),
            subsequent_indent=" " * (column + 2 if column < width // 2 else 4),
            break_on_hyphens=False,
        )


def explain(rule_id: str) -> str:
    """Return a rule's page, or a cause's; of a scenario, a mode or a metric the line about it.

    Raises:
        InputError: no such name.
    """
    from parity.health.rule import catalogue as health_rules
    from parity.lint.pages import page
    from parity.lint.rule import catalogue as lint_rules

    rules = lint_rules()
    rule_id = rule_id.replace("_", "-")
    if rule_id.upper() in rules:
        return page(rules[rule_id.upper()])
    health = health_rules()
    if rule_id.lower() in health:
        return health[rule_id.lower()].RULE.page()
    lines = {
        name.replace("_", "-"): f"{name} ({kind}): {about}"
        for kind in ("scenarios", "modes", "metrics")
        for name, about in catalogue.listed(kind).items()
    }
    if rule_id in lines:
        return lines[rule_id]
    known = [*rules, *health]
    try:
        from parity.diagnose.cause import catalogue as all_causes
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        needs = "which need PyTorch: pip install 'jaxllama[parity]'"
        raise InputError(_unknown(rule_id, known, [needs])) from error
    causes = all_causes()
    if rule_id.lower() in causes:
        return causes[rule_id.lower()].cause.page()
    raise InputError(
        _unknown(rule_id, known, sorted(causes), [line.split()[0] for line in lines.values()])
    )


def _unknown(
    name: str, rules: Collection[str], causes: Collection[str], others: Collection[str] = ()
) -> str:
    start = f"explain {name!r}: no such rule or cause; "
    if guess := meant(name, [*rules, *causes, *others]):
        return start + guess.rstrip()
    return f"{start}the rules are {', '.join(rules)}; the causes {', '.join(causes)}"
