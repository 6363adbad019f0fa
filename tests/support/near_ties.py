"""What passed by a near-tie alone, as a test says by `record_property`, is told at the end."""

from __future__ import annotations

import pytest

NEAR_TIE = "near_tie"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the near-ties, with the tests that met them."""
    told = [
        f"{report.nodeid}: {value}"
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == NEAR_TIE
    ]
    if told:
        terminalreporter.section("passed by a near-tie")
        for line in told:
            terminalreporter.line(line)
