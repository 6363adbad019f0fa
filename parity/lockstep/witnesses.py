"""What has been seen of one witness over a pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from parity.comparison.difference import TapDifference
from parity.comparison.tolerance import LIMITS
from parity.lockstep.participants import ActiveRun
from parity.result import WitnessResult
from parity.taps import AXES, split_name


@dataclass
class WitnessSummary:
    """What has been seen of one witness so far."""

    compared: set[str] = field(default_factory=set)
    unmatched: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    worst_tap: str = ""
    rho: float = 0.0
    error: float = 0.0
    subject_gap: float = 0.0

    def note(self, name: str, found: TapDifference, rho: float) -> None:
        """Add what was found of one tap."""
        self.compared.add(name)
        self.problems += [f"{name}: {problem}" for problem in found.problems]
        if AXES[split_name(name)[0]] != "R":
            self.error = max(self.error, float(found.relative.max()))
        if rho > self.rho or not self.worst_tap:
            self.worst_tap, self.rho = name, rho

    def row(self, active: ActiveRun, lane: str, scenario: str) -> WitnessResult:
        """Return the witness's row of the report."""
        return WitnessResult(
            witness=active.subject.name,
            lane=lane,
            scenario=scenario,
            mode=active.mode,
            is_gold=active.is_reference,
            compared=len(self.compared),
            absent=active.absent,
            unmatched=tuple(sorted(self.unmatched)),
            worst_tap=self.worst_tap,
            rho=self.rho,
            limit=LIMITS[lane].witness_limit(active.mode),
            error=self.error,
            subject_gap=self.subject_gap,
            problems=tuple(self.problems[:8]),
        )
