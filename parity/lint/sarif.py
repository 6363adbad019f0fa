"""A lint report as SARIF 2.1.0, which code hosts and editors read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jaxllama.errors import on_the_command_line
from parity.lint.findings import Finding
from parity.lint.linter import LintReport
from parity.lint.pages import page
from parity.lint.rule import RuleFile, catalogue

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def document(reports: Mapping[str, LintReport]) -> dict[str, Any]:
    """Return the reports as one SARIF run: every rule with its page, a result a finding.

    Args:
        reports: what the rules found, by what was linted: `FILE`, `FILE:KEY`, a spec, or calls of
            an attention.
    """
    files = {mask: Path(mask.partition(":")[0]) for mask in reports}
    uris = {mask: _uri(file) if file.is_file() else None for mask, file in files.items()}
    order = list(catalogue())
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "parity lint",
                "semanticVersion": metadata.version("jaxllama"),
                "rules": [_rule(rule_file) for rule_file in catalogue().values()],
            }
        },
        "invocations": [{"executionSuccessful": True}],
        "results": [
            _result(finding, order, uris[mask], mask)
            for mask, report in reports.items()
            for finding in report.findings
        ],
    }
    if found := [uri for uri in uris.values() if uri is not None]:
        run["artifacts"] = [{"location": {"uri": uri}} for uri in found]
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _uri(file: Path) -> str:
    """Return a path as a URI reference: relative ones are for the reader to resolve."""
    return file.as_uri() if file.is_absolute() else quote(os.fsencode(file.as_posix()))


@cache
def _rule(file: RuleFile) -> dict[str, Any]:
    rule = file.rule
    return {
        "id": rule.id,
        "name": rule.name,
        "shortDescription": {"text": rule.name},
        "fullDescription": {"text": f"{rule.checks} {rule.why}"},
        "help": {"text": on_the_command_line(rule.remedy), "markdown": page(file)},
        "defaultConfiguration": {"level": rule.severity},
    }


def _result(finding: Finding, order: list[str], uri: str | None, mask: str) -> dict[str, Any]:
    location: dict[str, Any] = {
        "logicalLocations": [{"name": str(finding.place), "fullyQualifiedName": mask}]
    }
    if uri is not None:
        # An array has no lines; code hosts show nothing without one.
        region = {"startLine": 1}
        location["physicalLocation"] = {"artifactLocation": {"uri": uri, "index": 0}}
        location["physicalLocation"]["region"] = region
    return {
        "ruleId": finding.rule,
        "ruleIndex": order.index(finding.rule),
        "level": finding.severity,
        "message": {"text": finding.message},
        "locations": [location],
        "occurrenceCount": finding.count,
    }
