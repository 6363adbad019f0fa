"""A linter for attention masks: static rules read a mask, dynamic ones run an attention.

from parity.lint import Case, lint
for finding in lint(Case(mask=array, valid=attention_mask)).findings:
    print(finding.message)
"""

from parity.lint.case import Case
from parity.lint.findings import Finding, Place
from parity.lint.linter import LintReport, lint
from parity.lint.rule import Rule, catalogue, lookup

__all__ = ["Case", "Finding", "LintReport", "Place", "Rule", "catalogue", "lint", "lookup"]
