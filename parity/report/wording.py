"""The sentences of a verdict, which the terminal and the page share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from parity.comparison.extent import Extent
from parity.locate import unseen_before
from parity.report.quality import quality_headline, quality_lines
from parity.result import DifferenceKind, Divergence, Reading, Result, TapResult

# What a divergence is one of, in words.
DIFFERENCES: dict[DifferenceKind, str] = {
    "reading": "of reading: the subject runs another model than the checkpoint holds",
    "meaning": "of meaning: it is there in float64, where rounding explains nothing",
    "computation": "another computation in this dtype: float64 is equal, and it is far beyond "
    "rounding",
    "rounding": "of rounding: float64 is equal, but honest implementations round better",
    "not judged": "meaning was not judged: that takes the same run in float64 (--dtype f64)",
}

# Modes in which the subject carries its own values on.
OWN_RUNS = ("free", "decode")

# What is said of how an operator does on the reference's inputs, and what where none was asked.
ASKED = ("upstream", "drift")
NOT_ASKED = "it or what it was given: nothing was run on the reference's inputs"

KINDS = {
    "operator": "the operator itself: on the reference's inputs it is wrong too",
    "upstream": "what it was given: on the reference's inputs it is right",
    "drift": "accumulated rounding: on the reference's inputs every operator is right",
    "whole": "the pass as users run it, compiled whole: watched stage by stage, the same is equal",
    "setup": "the setup of the run: no activation has moved yet",
    "loss": "the loss or the forward pass before it: --mode free,isolated on this scenario tells",
    "reading": "the reader: what it handed over was wrong before any model ran",
    "generation": "the loop that writes, its sampling or its cache; the model itself where "
    "--mode free,decode says so",
    "step": "the optimiser of jaxllama.train; or the gradients, which --mode grad tells",
    "tokens": "the tokenizer, or the files it was read from: no model was run",
    "backward": "this step of the backward pass: the gradients it starts from are right",
}


def summary(result: Result) -> list[str]:
    """Return the verdict, where the difference begins, its cause and the command, as lines."""
    first = result.first_divergence
    if result.quality is not None:
        lines = [headline(result), *quality_lines(result.quality), *machine_lines(result)]
        return [*lines, f"again: {result.command}"]
    return [
        headline(result),
        *not_run_lines(result),
        *([] if first is None else divergence_lines(first, result)),
        *cause_lines(result),
        *inconclusive_lines(result),
        *machine_lines(result),
        f"again: {result.command}",
    ]


def brief(result: Result) -> list[str]:
    """Return the verdict, the place, the cause and the command, a line each, and nothing else."""
    lines = [headline(result)]
    if result.first_divergence is not None:
        lines += _where_it_begins(result.first_divergence)
    elif result.verdict == "inconclusive":
        lines += [*inconclusive_lines(result)][:1]
    lines += [*cause_lines(result)][:1]
    return [*lines, f"again: {result.command}"]


def _where_it_begins(first: Divergence) -> Iterable[str]:
    row, (said, *_) = first.row, divergence_lines(first)
    if first.kind == "reading" or row.worst is None:
        yield said
    else:
        at = f", worst at {place(row)}" if row.worst.index else ""
        yield f"{said}: {row.rho:.3g} times the noise, limit {row.limit:g}{at}"


def headline(result: Result) -> str:
    """Return the verdict in one line; the word comes first."""
    if result.quality is not None:
        return quality_headline(result.quality)
    witnesses = list(dict.fromkeys(row.witness for row in result.witnesses))
    against = f" against {', '.join(witnesses)}" if witnesses else ""
    partial = result.absent and result.compared < result.expected
    taps = f"{result.compared} of {result.expected}" if partial else f"{result.compared}"
    lanes = f" in {', '.join(result.lanes)}" if result.lanes else ""
    line = f"{result.verdict}: {taps} taps{lanes}{against}"
    if result.first_divergence is not None:
        line += f"; first divergence {result.first_divergence.row.tap}"
    if (kind := _kind(result)) is not None:
        line += f" ({kind})"
    # What does not decide the verdict is said beside it.
    return "; ".join([line, *_open(result)] if result.verdict == "divergent" else [line])


def _open(result: Result) -> Iterable[str]:
    """Yield in a few words what could not be compared or is in dispute."""
    if result.unmatched:
        count = len(result.unmatched)
        yield f"{count} tap{'s' * (count > 1)} unmatched"
    for said, names in (
        ("unmatched taps of", [w.witness for w in result.witnesses if w.unmatched]),
        ("witnesses disagree:", [w.witness for w in result.disagreeing]),
    ):
        if names:
            yield f"{said} {', '.join(dict.fromkeys(names))}"


def _kind(result: Result) -> str | None:
    """Return what a verdict is about, where that is not plain."""
    if result.difference == "reading":
        return "reading"
    if result.difference == "not judged" or not result.shows_meaning:
        return "meaning not judged"
    return result.difference


def not_run_lines(result: Result) -> Iterable[str]:
    """Say what the verdict is not about; older results do not know."""
    if result.not_run:
        yield f"not run: {'; '.join(result.not_run)}"


def machine_lines(result: Result) -> Iterable[str]:
    """Name the machine, and the reference's where traces of another are compared."""
    machines = {
        name: env["machine"]["line"]
        for name, env in (
            ("machine", result.environment),
            ("reference's machine", result.environment.get("reference", {})),
        )
        if "machine" in env  # older results name none
    }
    same = len(set(machines.values())) == 1
    for name, line in list(machines.items())[: 1 if same else None]:
        yield f"{name}: {line}"


def divergence_lines(first: Divergence, result: Result | None = None) -> Iterable[str]:
    """Yield the first divergence in words: where, how much, and what kind of start it is."""
    row = first.row
    if first.kind == "reading":
        yield f"first divergence: {row.tap} (reading the checkpoint)"
        yield f"  difference: {DIFFERENCES[first.difference]}"
        yield from (f"  {problem}" for problem in row.problems)
        yield f"  origin: {KINDS[first.kind]}"
        if first.flagged:
            yield f"  also read otherwise: {_few(first.flagged)}"
        return
    where = f"{row.lane}, scenario {row.scenario}, {row.mode}"
    if row.mode == "decode":
        where += f" step {row.step}"
    yield f"first divergence: {row.tap} ({where})"
    yield f"  difference: {DIFFERENCES[first.difference]}"
    if row.error or not row.structural:  # of another shape nothing is measured
        yield (
            f"  error {row.error:.2e}, noise {row.noise:.2e}: {row.rho:.3g} times the noise, "
            f"limit {row.limit:g}"
        )
    if row.noise_from == "order: none":
        yield "  no order of summation can err by so much"
    elif row.noise_from.startswith("order: "):
        yield f"  no order of summation explains it; the one that errs most is {row.noise_from[7:]}"
    if row.peak_rho > row.peak_limit and row.mode != "probe":  # each element is judged there
        yield f"  largest element: {row.peak_rho:.3g} times the noise, limit {row.peak_limit:g}"
    if row.worst is not None:
        at = f" at {place(row)}" if row.worst.index else ""
        yield f"  worst{at}: {row.worst.subject:.6g}, reference {row.worst.gold:.6g}"
    if row.extent is not None:
        yield f"  beyond the limit: {spread(row.extent)}"
    for problem in row.problems:
        yield f"  {problem}"
    yield f"  origin: {origin_of(first, result)}"
    partial = result is not None and result.absent
    unseen = (
        ()
        if result is None or not partial
        else unseen_before(row.tap, [r.tap for r in result.rows])
    )
    if unseen:
        yield f"  not shown just before it: {_few(unseen)}"
    if first.flagged:
        yield f"  flagged: {', '.join(first.flagged)}"


def origin_of(first: Divergence, result: Result | None = None) -> str:
    """Say what kind of start a divergence is; with a result, no more than its runs have shown."""
    alone = result is not None and not _isolated(result, first.row)
    return NOT_ASKED if alone and first.kind in ASKED else KINDS[first.kind]


def _isolated(result: Result, row: TapResult) -> bool:
    where = row.lane, row.scenario, "isolated"
    return any((r.lane, r.scenario, r.mode) == where for r in result.rows)


AXIS_WORDS = {
    "B": "row",
    "T": "token",
    "S": "key",
    "N": "head",
    "K": "kv head",
    "H": "feature",
    "R": "frequency",
    "D": "feature",
    "F": "feature",
    "V": "vocabulary entry",
    "O": "output feature",
    "I": "input feature",
}


def place(row: TapResult) -> str:
    """Name the worst element's place in words."""
    assert row.worst is not None
    words = AXIS_WORDS | ({"T": "query"} if "S" in row.worst.index else {})
    return ", ".join(f"{words[axis]} {i}" for axis, i in row.worst.index.items())


def spread(extent: Extent) -> str:
    """Say which tokens and heads a failure takes in."""
    row, token = extent.first["B"], extent.first["T"]
    said = f"{extent.tokens} of {extent.of_tokens} tokens, from row {row}, token {token} on"
    if not extent.of_heads:
        return said
    if len(extent.heads) == extent.of_heads:
        return f"{said}; all {extent.of_heads} heads"
    listed = ", ".join(map(str, extent.heads[:8])) + (", ..." if len(extent.heads) > 8 else "")
    heads = "head" if len(extent.heads) == 1 else "heads"
    return f"{said}; {heads} {listed} of {extent.of_heads}"


def cause_lines(result: Result) -> Iterable[str]:
    """Yield the cause and how it was confirmed, or the suspects."""
    if result.cause is None:
        return
    cause = result.cause
    found = "cause" if cause.confirmed or not cause.id else "cause, unconfirmed"
    yield f"{found}: {cause.summary}"
    for other in cause.others:
        yield f"and: {other.summary}"
    for line in cause.evidence:
        yield f"  {line}"
    for suspect in cause.suspects:
        yield f"  suspect: {suspect.id} ({suspect.summary}), leaves {suspect.error_left:.1e}"
    if cause.remedy:
        yield f"  remedy: {cause.remedy}"
    if cause.id:
        yield f"  more: parity explain {cause.id}"


def inconclusive_lines(result: Result) -> Iterable[str]:
    """Yield what leaves a verdict open, or would without a certain divergence: witnesses that
    disagree, and what could not be compared.
    """
    for row in result.disagreeing:
        yield (
            f"witnesses disagree: {row.witness} ({row.lane}, {row.scenario}) is {row.rho:.3g} "
            f"times the noise from the float64 reference at {row.worst_tap}, limit {row.limit:g}"
        )
        for problem in row.problems[:3]:
            yield f"  {problem}"
    if not result.rows and not (result.reading and result.reading.differences):
        yield "nothing was compared"
    if result.unmatched:
        yield f"unmatched taps of the subject: {_few(result.unmatched)}"
    for row in result.witnesses:
        if row.unmatched:
            yield f"unmatched taps of {row.witness}: {_few(row.unmatched)}"


def reading_line(reading: Reading) -> str:
    """Say in one line what became of reading the checkpoint twice."""
    what = f"{reading.fields} fields and {reading.tensors} tensors"
    if reading.differences:
        return f"reading: of {what} {len(reading.differences)} are otherwise to parity's own reader"
    return f"reading: {what} are the same to parity's own reader"


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def nearest(row: TapResult) -> tuple[float, float, float, str]:
    """Return of a row's two figures the one nearer its limit: nearness, figure, limit, mark."""
    token = (row.rho / row.limit, row.rho, row.limit, "")
    peak = (row.peak_rho / row.peak_limit, row.peak_rho, row.peak_limit, "^")
    return max(token, peak, key=lambda figures: figures[0])


@dataclass(frozen=True)
class LogitsFigures:
    """The logits of the subject's own runs at a dtype: the worst of each figure, flips of all.

    Attributes:
        lane: the dtype.
        passed: whether all are within their limits; else more than rounding is in the flips.
        kl_max, shift, range, top1_flips, unexplained_flips: see `parity.comparison.logits`.
    """

    lane: str
    passed: bool
    kl_max: float
    shift: float
    range: float
    top1_flips: float
    unexplained_flips: float


def logits_figures(result: Result) -> list[LogitsFigures]:
    """Return what is said of the logits, dtype by dtype."""
    rows = [row for row in result.rows if row.tap == "logits" and row.mode in OWN_RUNS]
    found = []
    for lane in dict.fromkeys(row.lane for row in rows):
        ours = [row for row in rows if row.lane == lane]
        facts = [row.facts for row in ours]
        worst = [max(f.get(name, 0.0) for f in facts) for name in ("kl_max", "shift", "range")]
        flips = [sum(f.get(n, 0.0) for f in facts) for n in ("top1_flips", "unexplained_flips")]
        found.append(LogitsFigures(lane, all(row.passed for row in ours), *worst, *flips))
    return found
