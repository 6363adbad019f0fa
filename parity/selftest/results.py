"""What a selftest found, as plain data: a row for each injection and each clean run, and sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from parity.selftest.calibration import Figure, Range, ranges
from parity.selftest.fault import Fault
from parity.selftest.harness import Outcome
from parity.selftest.machines.catalogue import MACHINES

# 1.0: first published. 1.1: `machines`, `missed_controls`; `fair` of a clean run.
# 1.2: `environment`; `fair` of a machine, unfair ones among them.
SCHEMA_VERSION = "1.2"


@dataclass(frozen=True)
class Injection:
    """One fault, and what the checker made of it.

    Attributes:
        id: names the injection.
        family, kind, variant, model, scenario, lane, mode: as in `Fault`.
        expected: the tap, step and flagged setup taps where it begins.
        found: the same as the checker said; empty if it said equal.
        verdict: the checker's.
        cause_expected, cause_found: identifiers of causes.
        confirmed: whether the reference, made wrong in the cause's way, agreed with the subject.
        error: the exception that ended the run or the search for the cause, if one did.
    """

    id: str
    family: str
    kind: str
    variant: str
    model: str
    scenario: str
    lane: str
    mode: str
    expected: dict[str, Any]
    found: dict[str, Any]
    verdict: str
    cause_expected: str
    cause_found: str
    confirmed: bool
    error: str = ""

    @property
    def detected(self) -> bool:
        """Whether the verdict is `divergent`; a crash or an open verdict is no detection."""
        return self.verdict == "divergent"

    @property
    def located(self) -> bool:
        """Whether it was found at the exact tap and step, with the right setup taps flagged."""
        return self.detected and self.found == self.expected

    @property
    def named(self) -> bool:
        """Whether the right cause was named."""
        return bool(self.cause_found) and self.cause_found == self.cause_expected

    def to_dict(self) -> dict[str, Any]:
        """Return the row of the JSON document."""
        judged = ("detected", "located", "named")
        return {**asdict(self), **{name: getattr(self, name) for name in judged}}


@dataclass(frozen=True)
class CleanResult:
    """One run without a fault, or with a benign difference.

    Attributes:
        kind: `clean twin`, `compiled`, the machine, or the benign difference.
        model, scenario, lane, mode: on what.
        verdict: `equal`, or it is a false alarm. `no effect` of a machine that gave the same bits
            as this one.
        found: the tap that was blamed.
        error: the exception that ended the run, if one did.
        figures: how near it came to each limit.
        fair: False of a control that has to alarm.
    """

    kind: str
    model: str
    scenario: str
    lane: str
    mode: str
    verdict: str
    found: str = ""
    error: str = ""
    figures: tuple[Figure, ...] = ()
    fair: bool = True

    @property
    def alarm(self) -> bool:
        """Whether a fault was seen where there is none."""
        return self.fair and self.verdict != "equal"

    @property
    def missed_controls(self) -> bool:
        """Whether it had to alarm and did not."""
        return not self.fair and self.verdict != "divergent"


@dataclass
class SelftestResult:
    """Everything a selftest found.

    Attributes:
        injections: a row for each fault.
        clean: a row for each run without one.
        seconds: it took.
        environment: where, see `parity.runner.environment`.
    """

    injections: list[Injection] = field(default_factory=list)
    clean: list[CleanResult] = field(default_factory=list)
    seconds: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def misses(self) -> list[Injection]:
        """Injections that were not detected or not located exactly."""
        return [row for row in self.injections if not row.located]

    @property
    def unnamed(self) -> list[Injection]:
        """Injections whose cause was not named and confirmed."""
        return [row for row in self.injections if not (row.named and row.confirmed)]

    @property
    def alarms(self) -> list[CleanResult]:
        """Clean runs that were not found equal."""
        return [row for row in self.clean if row.alarm]

    @property
    def missed_controls(self) -> list[CleanResult]:
        """Unfair controls that raised no alarm."""
        return [row for row in self.clean if row.missed_controls]

    @property
    def passed(self) -> bool:
        """Whether every fault was located, named and confirmed, and nothing else was found."""
        return not (self.misses or self.unnamed or self.alarms or self.missed_controls)

    @property
    def ranges(self) -> list[Range]:
        """How near the clean runs came to the limits, those of imitated machines apart."""
        return ranges(
            (row.lane, f"{row.kind} {row.model} {row.scenario}", row.figures)
            for row in self.clean
            if row.fair and row.kind not in MACHINES
        )

    @property
    def imitated(self) -> list[CleanResult]:
        """Runs on imitated machines, the unfair ones' included."""
        return [row for row in self.clean if row.kind in MACHINES or not row.fair]

    def summary(self) -> dict[str, int]:
        """Return the sums that scripts rely on."""
        rows = self.injections
        return {
            "kinds": len({(row.family, row.kind) for row in rows}),
            "injections": len(rows),
            "detected": sum(row.detected for row in rows),
            "located": sum(row.located for row in rows),
            "named": sum(row.named for row in rows),
            "confirmed": sum(row.named and row.confirmed for row in rows),
            "clean_runs": sum(row.fair for row in self.clean),
            "false_alarms": len(self.alarms),
            "unheard": len(self.missed_controls),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the versioned JSON document."""
        return {
            "schema_version": SCHEMA_VERSION,
            "summary": self.summary(),
            "misses": [row.id for row in self.misses],
            "unnamed": [row.id for row in self.unnamed],
            "injections": [row.to_dict() for row in self.injections],
            "clean": [{**asdict(row), "false_alarm": row.alarm} for row in self.clean],
            "calibration": [row.to_dict() for row in self.ranges],
            "machines": [
                {
                    **{n: getattr(row, n) for n in ("kind", "model", "scenario", "lane", "fair")},
                    **asdict(figure),
                }
                for row in self.imitated
                for figure in row.figures
            ],
            "seconds": round(self.seconds, 1),
            "environment": self.environment,
        }


def injection(fault: Fault, outcome: Outcome | None, error: str = "") -> Injection:
    """Return the row of one fault.

    Args:
        fault: what was injected.
        outcome: what the checker said; None if it failed.
        error: how it failed.
    """
    first = outcome.first if outcome else None
    cause = outcome.cause if outcome else None
    return Injection(
        id=fault.id,
        family=fault.family,
        kind=fault.kind,
        variant=fault.variant,
        model=fault.model,
        scenario=fault.scenario,
        lane=fault.lane,
        mode=fault.mode,
        expected={"tap": fault.expected, "step": fault.step, "flagged": list(fault.flagged)},
        found=(
            {"tap": first.row.tap, "step": first.row.step, "flagged": list(first.flagged)}
            if first
            else {}
        ),
        verdict=outcome.verdict if outcome else "error",
        cause_expected=fault.cause,
        cause_found=cause.id if cause else "",
        confirmed=cause is not None and cause.confirmed,
        error=error or (outcome.unexplained if outcome else "")[:300],
    )


def by_family(rows: Sequence[Injection]) -> dict[str, list[Injection]]:
    """Return injections grouped by family, letters apart and numbers in order."""
    groups: dict[str, list[Injection]] = {}
    for row in sorted(rows, key=lambda r: (r.family[0], int(r.family[1:]))):
        groups.setdefault(row.family, []).append(row)
    return groups
