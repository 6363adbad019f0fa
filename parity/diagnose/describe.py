"""What a search for causes found, as reports have it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxllama.errors import argument
from parity.diagnose.cause import Hypothesis, catalogue
from parity.diagnose.compare_recording import RecordingComparison
from parity.diagnose.edits.edit import in_words
from parity.diagnose.elsewhere import inputs_like
from parity.diagnose.mutated_reference import MutatedReference
from parity.inputs import Inputs
from parity.result import CauseReport, Experiment, NamedCause, Suspect, TapResult
from parity.taps import split_name

# Relative errors of a tap of float64 of which something was computed in float32.
NARROW_INSIDE = 1e-9, 1e-5


@dataclass(frozen=True)
class CauseStep:
    """One cause on the way to agreement.

    Attributes:
        hypothesis: what was put into the reference.
        tap: where they parted.
        before, after: its error.
        left: its error on the subject's own inputs; 0 where only a whole run shows it.
        fails_in: where else what was found so far does not explain the subject, in words.
    """

    hypothesis: Hypothesis
    tap: str
    before: float
    after: float
    left: float
    fails_in: str = ""


@dataclass(frozen=True)
class Search:
    """The way from the reference to one that agrees with the subject, as far as it went.

    Attributes:
        start, end: where the subject parted from the reference, and from what became of that.
        steps: the causes found.
        suspects: what was proposed at the end, with the error that each leaves.
        reference, inputs: wrong in all these ways.
        seconds: of a processor, that the search had.
        out_of_time: what there was no time for, in words.
        hidden: taps that the subject does not show, between the last that agrees and that one.
    """

    start: RecordingComparison
    end: RecordingComparison
    steps: tuple[CauseStep, ...]
    suspects: tuple[tuple[Hypothesis, float], ...]
    reference: MutatedReference
    inputs: Inputs
    seconds: float
    out_of_time: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    def inputs_like(self, inputs: Inputs, chunks: Sequence[int] | None) -> Inputs | None:
        """Return another scenario, wrong in all these ways; see `inputs_like`."""
        return inputs_like([step.hypothesis for step in self.steps], inputs, chunks)

    @property
    def fails_in(self) -> str:
        """Where else the steps do not explain the subject, in words; empty if nowhere known."""
        return self.steps[-1].fails_in if self.steps else ""

    def then(self, later: Search) -> Search:
        """Return this search and one that went on from its end."""
        start = later.start if self.start.first is None else self.start
        return replace(later, start=start, steps=(*self.steps, *later.steps))


def describe_search(search: Search) -> CauseReport | None:
    """Return what a search found; None where nothing differed."""
    start, end, steps = search.start, search.end, search.steps
    if start.first is None:
        return None
    agrees = end.first is None and not search.fails_in
    evidence = [_line(step) for step in steps]
    if agrees:
        evidence += _alike(steps)
        evidence.append("so changed, the reference agrees with the subject in every tap")
    elif end.first is None:
        evidence.append(
            "so changed, the reference agrees with the subject in every tap; "
            f"{search.fails_in}: the cause is another, or more than this"
        )
    else:
        assert end.first is not None
        evidence.append(f"unexplained: {end.first.tap}, error {end.first.error:.1e}")
    if search.hidden:
        evidence.append(_unnamed(search.hidden, agrees))
    if search.out_of_time and not agrees:
        evidence.append(
            f"{search.seconds:g} s of a processor were too few: not tried were "
            f"{' and '.join(search.out_of_time)}; --seconds {10 * search.seconds:g} goes on"
        )
    listed = [] if agrees else _suspects(search.suspects)
    if not steps:
        if start.first.lane == "f64" and NARROW_INSIDE[0] < start.first.error < NARROW_INSIDE[1]:
            evidence.append(
                "an error of this size is what float32 inside a float64 model leaves, such as "
                "tables of cosines and sines: make them in float64, or judge with "
                f"{argument('dtype', 'f32')}"
            )
        return CauseReport(
            id="",
            title="unexplained",
            summary=f"unexplained: no known cause makes {start.first.tap} what it is",
            evidence=evidence,
            suspects=listed,
        )
    named = [_named(of_cause) for of_cause in _merged(steps)]
    return CauseReport(
        **vars(named[0]),
        confirmed=agrees,
        evidence=evidence,
        experiments=[Experiment(s.hypothesis.words, s.tap, s.before, s.after) for s in steps],
        suspects=listed,
        others=named[1:],
        wrong_reference=search.reference,
        wrong_inputs=search.inputs_like,
    )


# Taps that are asked for, in a report.
MOST_ASKED = 6


def _unnamed(hidden: Sequence[str], agrees: bool) -> str:
    """Ask for the taps that would tell a cause, or tell it from others."""
    names = [split_name(name)[0] for name in hidden]
    kinds = list(dict.fromkeys(n.replace("layers.", "layers.{i}.") for n in names))
    asked = ", ".join(kinds[:MOST_ASKED]) + (", ..." if len(kinds) > MOST_ASKED else "")
    other = "another cause among them may come to the same; " if agrees else ""
    return f"{len(hidden)} taps before it are not shown: {other}name {asked} to have it told"


# Explanations as good as the one that is named, in a report.
MOST_ALIKE = 3


def _alike(steps: Sequence[CauseStep]) -> list[str]:
    """Say what cannot be told from what was found."""
    return [
        f"as good in what was tried at {step.tap}: {'; '.join(step.hypothesis.alike[:MOST_ALIKE])}"
        for step in steps
        if step.hypothesis.alike
    ]


def describe_precision(row: TapResult) -> CauseReport:
    """Return why products with a single term are off.

    Args:
        row: of `parity.noise.one_hot.probe_products`; its facts are the experiments.
    """
    cause = catalogue()["matmul-precision"].cause
    left, name = min((left, n.removeprefix("as_")) for n, left in row.facts.items())
    found = left <= row.limit
    bits = max(1, round(23 - math.log2(row.rho))) if math.isfinite(row.rho) else 0
    said = f"factors in {name}" if found else f"{bits} bits"
    changed = f"factors in {name}"
    before, after = row.error, left * row.noise
    line = f"{changed} on the reference: error at {row.tap} {before:.1e} -> {after:.0e}"
    return CauseReport(
        id=cause.id,
        title=cause.title,
        summary=f"{cause.title} ({said}); effective {said.split()[-1] if found else said}, "
        "configured float32",
        effective=name if found else said,
        configured="float32",
        remedy=cause.remedy,
        confirmed=found,
        evidence=["products of a single term, which no order of summation changes", line],
        experiments=[Experiment(changed, row.tap, before, after)],
    )


def describe_unused(row: TapResult) -> CauseReport:
    """Return what is known where a table or a mask differs, and nothing that is computed by it."""
    return CauseReport(
        id="",
        title="unexplained",
        summary=f"unexplained: {row.tap} differs, and nothing that is computed by it",
        evidence=["what is shown under that name is not what the subject's own operators use"],
    )


def describe_mixture(row: TapResult) -> CauseReport:
    """Return what is known where no scenario shows a divergence by itself."""
    return CauseReport(
        id="",
        title="unexplained",
        summary=f"unexplained: {row.tap} differs where scenarios share a batch, in none by itself",
        evidence=[
            "rows of a batch take part in one another's: positions, masks or lengths of others"
        ],
    )


def _merged(steps: Sequence[CauseStep]) -> list[list[CauseStep]]:
    """Bring together what is of one cause, in the order in which it was found."""
    found: dict[str, list[CauseStep]] = {}
    for step in steps:
        layer = step.hypothesis.layer
        for part in step.hypothesis.parts or (step.hypothesis,):
            one = replace(step, hypothesis=replace(part, layer=layer))
            found.setdefault(part.cause, []).append(one)
    return list(found.values())


def _named(steps: Sequence[CauseStep]) -> NamedCause:
    """Name a cause with all that was changed for it; places of one change are said together."""
    first = steps[0].hypothesis
    cause = catalogue()[first.cause].cause
    layers: dict[str, list[int]] = {}
    for step in steps:
        places = layers.setdefault(step.hypothesis.said, [])
        if step.hypothesis.layer is not None:
            places.append(step.hypothesis.layer)
    changes = [
        said + (f" in layer{'s' * (len(at) > 1)} {in_words(at)}" if at else "")
        for said, at in layers.items()
    ]
    said = f"{cause.title} ({'; '.join(changes)})"
    if first.effective:
        said += f"; effective {first.effective}, configured {first.configured}"
    return NamedCause(
        id=cause.id,
        title=cause.title,
        summary=said,
        effective=first.effective,
        configured=first.configured,
        remedy=cause.remedy,
    )


def _line(step: CauseStep) -> str:
    said = f"{step.hypothesis.words} on the reference: error at {step.tap} {step.before:.1e} -> "
    if step.after < step.before or step.left >= step.before:
        line = f"{said}{step.after:.0e}"
    else:  # its values stand at ties, which a run's own rounding decides
        line = f"{said}{step.left:.0e} on the subject's own inputs"
    noise = step.hypothesis.noise
    return line + (f"; it rounds by up to {noise:.0e} itself" if noise else "")


def _suspects(ranked: Sequence[tuple[Hypothesis, float]]) -> list[Suspect]:
    return [
        Suspect(hypothesis.cause, hypothesis.words, left)
        for hypothesis, left in ranked[:5]
        if left > 0
    ]
