"""Every rule fires on its mutant and leaves its clean twin alone, and so does every other rule."""

import pytest

from parity.lint import catalogue, lint

STATIC = [rule_id for rule_id, file in catalogue().items() if file.rule.kind == "static"]


@pytest.mark.parametrize("rule_id", STATIC)
def test_the_mutant_fires_the_rule(rule_id):
    report = lint(catalogue()[rule_id].mutant())
    assert rule_id in [f.rule for f in report.findings], report
    for finding in report.findings:
        assert finding.count >= 1
        assert finding.remedy in finding.message
        assert finding.actual in finding.message


@pytest.mark.parametrize("rule_id", STATIC)
def test_the_twin_is_checked_and_clean(rule_id):
    report = lint(catalogue()[rule_id].twin())
    assert rule_id in report.checked, report.unchecked
    assert report.findings == []
