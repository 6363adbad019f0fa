"""Run every static rule over a case, and say which ones had nothing to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parity.lint.case import Case
from parity.lint.findings import Finding
from parity.lint.needs import lacks
from parity.lint.rule import catalogue


@dataclass(frozen=True)
class LintReport:
    """What was found, and how much was looked at.

    Attributes:
        findings: errors first, each in the order of its rule.
        explained: findings left out, as consequences of a rule that fired, by rule id.
        checked: ids of the rules that ran.
        unchecked: ids of the rules that could not, with what each lacks.
    """

    findings: list[Finding]
    explained: dict[str, str]
    checked: list[str]
    unchecked: dict[str, list[str]]

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON's types."""
        return {
            "schema_version": 1,
            "verdict": "faulty" if self.errors else "suspect" if self.findings else "clean",
            "findings": [finding.to_json() for finding in self.findings],
            "explained": self.explained,
            "checked": self.checked,
            "unchecked": self.unchecked,
        }


def lint(case: Case) -> LintReport:
    """Check a mask against every static rule that has what it needs.

    A rule that fires explains the findings of the rules it lists as consequences: of an inverted
    mask, that it is inverted is said, not that it also shows the future.
    """
    found: list[Finding] = []
    checked, unchecked = [], {}
    for rule_id, file in catalogue().items():
        if file.rule.kind != "static":
            continue
        if lacking := lacks(case, file.rule.needs):
            unchecked[rule_id] = lacking
        else:
            checked.append(rule_id)
            found += file.check(case)
    explained = {
        consequence: finding.rule
        for finding in found
        if finding.severity == "error"
        for consequence in catalogue()[finding.rule].rule.consequences
    }
    named = [f.rule for f in found if f.severity == "error" and not _residual(f)]
    if named:
        explained.update({f.rule: named[0] for f in found if _residual(f)})
    kept = [finding for finding in found if finding.rule not in explained]
    dropped = {f.rule: explained[f.rule] for f in found if f.rule in explained}
    kept.sort(key=lambda finding: finding.severity != "error")
    return LintReport(kept, dropped, checked, unchecked)


def _residual(finding: Finding) -> bool:
    return catalogue()[finding.rule].rule.residual
