"""`parity explain`: the page of a rule of lint or of health, or of a cause."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import typer

from jaxllama.errors import InputError, meant


def explain_command(
    rule: Annotated[
        str, typer.Argument(help="A rule's id, such as M05 or entropy-collapse, or a cause's.")
    ],
) -> None:
    """Print what a rule checks or a cause does, why, and what to do."""
    typer.echo(explain(rule))


def explain(rule_id: str) -> str:
    """Return a rule's page, or a cause's.

    Raises:
        InputError: no such rule or cause.
    """
    from parity.health.rule import catalogue as health_rules
    from parity.lint.pages import page
    from parity.lint.rule import catalogue

    rules = catalogue()
    rule_id = rule_id.replace("_", "-")
    if rule_id.upper() in rules:
        return page(rules[rule_id.upper()])
    health = health_rules()
    if rule_id.lower() in health:
        return health[rule_id.lower()].RULE.page()
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
    raise InputError(_unknown(rule_id, known, sorted(causes)))


def _unknown(name: str, rules: Collection[str], causes: Collection[str]) -> str:
    start = f"explain {name!r}: no such rule or cause; "
    if guess := meant(name, [*rules, *causes]):
        return start + guess.rstrip()
    return f"{start}the rules are {', '.join(rules)}; the causes {', '.join(causes)}"
