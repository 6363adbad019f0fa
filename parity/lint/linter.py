"""Run the static rules over a mask, the dynamic ones over an attention; say which could not run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jaxllama.errors import in_python
from parity.lint.case import Case
from parity.lint.findings import Finding
from parity.lint.needs import lacks
from parity.lint.probe_cases import Probed, cases
from parity.lint.rule import CannotCheck, catalogue

# 1: first published; `parity lint` and `parity probe` alike.
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class _Report:
    """What was found, and how much was looked at.

    Attributes:
        findings: errors first, each in the order of its rule.
        checked: ids of the rules that ran.
    """

    findings: list[Finding]
    checked: list[str]

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """`faulty` with errors, `suspect` with warnings alone, else `clean`."""
        return "faulty" if self.errors else "suspect" if self.findings else "clean"


@dataclass(frozen=True)
class LintReport(_Report):
    """What was found in a mask.

    Attributes:
        explained: findings left out, as consequences of a rule that fired, by rule id.
        unchecked: ids of the rules that could not run, with what each lacks.
        notes: how what can be read in several ways was read.
    """

    explained: dict[str, str]
    unchecked: dict[str, list[str]]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON's types."""
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict,
            "findings": [finding.to_json() for finding in self.findings],
            "explained": self.explained,
            "checked": self.checked,
            "unchecked": self.unchecked,
            "notes": list(self.notes),
        }


def lint(case: Case, words: Callable[[str], str] = in_python) -> LintReport:
    """Check a mask against every static rule that has what it needs.

    A rule that fires explains the findings of the rules it lists as consequences: of an inverted
    mask, that it is inverted is said, not that it also shows the future.

    Args:
        case: what is checked.
        words: says the arguments in a text as the asker writes them.
    """
    found: list[Finding] = []
    checked, unchecked = [], {}
    for rule_id, file in catalogue().items():
        if file.rule.kind != "static":
            continue
        if lacking := lacks(case, file.rule.needs):
            unchecked[rule_id] = [words(need) for need in lacking]
        else:
            checked.append(rule_id)
            found += (replace(f, remedy=words(f.remedy)) for f in file.check(case))
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
    return LintReport(kept, checked, dropped, unchecked, case.notes)


def _residual(finding: Finding) -> bool:
    return catalogue()[finding.rule].rule.residual


@dataclass(frozen=True)
class ProbeReport(_Report):
    """What an attention was found to do.

    Attributes:
        name: the attention's.
        unchecked: ids of the rules that could not run, with the reason.
    """

    name: str
    unchecked: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON's types."""
        return {
            "schema_version": SCHEMA_VERSION,
            "attention": self.name,
            "verdict": self.verdict,
            "findings": [finding.to_json() for finding in self.findings],
            "checked": self.checked,
            "unchecked": self.unchecked,
        }

    def text(self, *, quiet: bool = False) -> str:
        """Return the report for people; the verdict comes first, `quiet` has findings alone."""
        warnings = len(self.findings) - self.errors
        lines = [
            f"{self.verdict}: {self.name}: {self.errors} errors, {warnings} warnings"
            f" in {len(cases())} cases ({', '.join(self.checked)})"
        ]
        lines += [f"{f.severity} {f.rule}: {f.message}" for f in self.findings]
        if not quiet:
            lines += [f"not checked: {rule}: {why}" for rule, why in self.unchecked.items()]
        return "\n".join(lines)


def probe(probed: Probed) -> ProbeReport:
    """Question an attention by every dynamic rule."""
    findings: list[Finding] = []
    checked: list[str] = []
    unchecked: dict[str, str] = {}
    for rule_id, file in catalogue().items():
        if file.rule.kind != "dynamic":
            continue
        try:
            findings += list(file.check(probed))
            checked.append(rule_id)
        except CannotCheck as reason:
            unchecked[rule_id] = str(reason)
    findings.sort(key=lambda finding: finding.severity != "error")
    return ProbeReport(findings, checked, probed.name, unchecked)
