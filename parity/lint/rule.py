"""What a rule is: its texts, its check, the mutant that must fire it and the twin that must not."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from jaxllama.errors import InputError
from parity.lint.findings import Finding, Place, Severity

Kind = Literal["static", "dynamic"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The texts of one rule; its page, `parity explain` and its findings are made from them.

    Attributes:
        id: a letter for the subject (M mask, P positions, T tokens, C cache, W window, S segments,
            H heads, K kernel, N NaN, G gradient) and a number.
        name: the fault in a few words, for headings.
        severity: of its findings, unless a finding says otherwise.
        checks: what is looked at.
        why: what goes wrong in the model.
        example: code that has the fault.
        remedy: what to do instead.
        sources: reports of it, as project#number.
        needs: facts of a case without which there is nothing to check.
        consequences: rules whose findings this one explains, left out where it fires.
        residual: reported only where no other rule has found an error.
        kind: static rules read a mask; dynamic ones run an attention.
    """

    id: str
    name: str
    severity: Severity
    checks: str
    why: str
    example: str
    remedy: str
    sources: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    consequences: tuple[str, ...] = ()
    residual: bool = False
    kind: Kind = "static"

    def finding(
        self,
        what: str,
        actual: str,
        expected: str,
        *,
        remedy: str | None = None,
        where: tuple[Place, int] = (Place(), 1),
        severity: Severity | None = None,
    ) -> Finding:
        """Return a finding of this rule; remedy and severity are the rule's unless given."""
        return Finding(
            rule=self.id,
            severity=severity or self.severity,
            what=what,
            actual=actual,
            expected=expected,
            remedy=remedy or self.remedy,
            place=where[0],
            count=where[1],
        )


@dataclass(frozen=True)
class RuleFile:
    """A rule with the functions of its file."""

    rule: Rule
    check: Callable[[Any], Iterator[Finding]]
    mutant: Callable[[], Any]
    twin: Callable[[], Any]


@cache
def catalogue() -> dict[str, RuleFile]:
    """Return every rule by id, from the files in `parity/lint/rules`."""
    from parity.lint import rules

    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(rules.__path__)):
        module = importlib.import_module(f"{rules.__name__}.{name}")
        file = RuleFile(module.RULE, module.check, module.mutant, module.twin)
        found[file.rule.id] = file
    return found


def lookup(rule_id: str) -> RuleFile:
    """Return one rule.

    Raises:
        InputError: no such id.
    """
    found = catalogue().get(rule_id.upper())
    if found is None:
        raise InputError(f"rule {rule_id!r}: expected one of {', '.join(catalogue())}")
    return found


class CannotCheck(Exception):
    """A dynamic rule does not apply to this attention; the message says why."""
