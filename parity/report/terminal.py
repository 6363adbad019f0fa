"""The result on a terminal: the verdict first, then where, what, and how to see it again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.extent import Extent
from parity.locate import unseen_before
from parity.result import DifferenceKind, Divergence, Result, TapRow, WitnessRow
from parity.taps import LAYER_TAPS, split_name

STYLES = {"equal": "bold green", "divergent": "bold red", "inconclusive": "bold yellow"}
# A grid of layers by operators stays readable up to this many layers; more are folded.
MOST_LAYERS = 40


def show(result: Result, console: Console) -> None:
    """Print a result; the first line is the verdict."""
    console.print(_headline(result), soft_wrap=True)
    for line in _machine_lines(result):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if result.first_divergence is not None:
        for line in divergence_lines(result.first_divergence, result):
            console.print(line, soft_wrap=True, highlight=False, markup=False)
    for line in _cause_lines(result):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    for line in _inconclusive_lines(result):
        console.print(line, style="yellow", soft_wrap=True, highlight=False, markup=False)
    console.print(_fitting(_lane_table, result, console))
    if any(row.tap == "logits" for row in result.rows):
        console.print(_logits_line(result), soft_wrap=True, highlight=False, markup=False)
    if result.witnesses:
        console.print(_witness_table(result.witnesses))
    grid = _grid(result)
    if grid.row_count:  # none of a backward pass
        console.print(grid)
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    console.print(_coverage_line(result), soft_wrap=True, highlight=False, markup=False)
    if cost := _cost_line(result.timing):
        console.print(cost, soft_wrap=True, highlight=False, markup=False)
    console.print(_environment_line(result), soft_wrap=True, highlight=False, markup=False)
    console.print(f"again: {result.command}", soft_wrap=True, highlight=False, markup=False)


def summary(result: Result) -> list[str]:
    """Return the verdict, where the difference begins, its cause and the command, as lines."""
    first = result.first_divergence
    return [
        _headline(result).plain,
        *([] if first is None else divergence_lines(first, result)),
        *_cause_lines(result),
        *_inconclusive_lines(result),
        *_machine_lines(result),
        f"again: {result.command}",
    ]


def _headline(result: Result) -> Text:
    lanes = list(dict.fromkeys(row.lane for row in result.rows))
    witnesses = list(dict.fromkeys(row.witness for row in result.witnesses))
    text = Text(result.verdict, style=STYLES[result.verdict])
    against = f" against {', '.join(witnesses)}" if witnesses else ""
    partial = result.absent and result.compared < result.expected
    taps = f"{result.compared} of {result.expected}" if partial else f"{result.compared}"
    text.append(f": {taps} taps in {', '.join(lanes)}{against}", style="default")
    if result.first_divergence is not None:
        text.append(f"; first divergence {result.first_divergence.row.tap}", style="default")
    if (kind := _kind(result)) is not None:
        text.append(f" ({kind})", style="default")
    return text


def _kind(result: Result) -> str | None:
    """Return what a verdict is about, where that is not plain."""
    if result.difference == "not judged" or not result.judges_meaning:
        return "meaning not judged"
    return result.difference


# What a divergence is one of, in words.
DIFFERENCES: dict[DifferenceKind, str] = {
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
    "setup": "the setup of the run: no activation has moved yet",
    "loss": "the loss or the forward pass before it: --mode free,isolated on this scenario tells",
    "backward": "this step of the backward pass: the gradients it starts from are right",
}


def divergence_lines(first: Divergence, result: Result | None = None) -> Iterable[str]:
    """Yield the first divergence in words: where, how much, and what kind of start it is."""
    row = first.row
    where = f"{row.lane}, scenario {row.scenario}, {row.mode}"
    if row.mode == "decode":
        where += f" step {row.step}"
    yield f"first divergence: {row.tap} ({where})"
    yield f"  difference: {DIFFERENCES[first.difference]}"
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
    alone = result is not None and not _isolated(result, row)
    yield f"  origin: {NOT_ASKED if alone and first.kind in ASKED else KINDS[first.kind]}"
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


def _isolated(result: Result, row: TapRow) -> bool:
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


def place(row: TapRow) -> str:
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


def _cause_lines(result: Result) -> Iterable[str]:
    if result.cause is None:
        return
    cause = result.cause
    found = "cause" if cause.get("confirmed") or not cause.get("id") else "cause, unconfirmed"
    yield f"{found}: {cause['summary']}"
    for other in cause.get("others", []):
        yield f"and: {other['summary']}"
    for line in cause.get("evidence", []):
        yield f"  {line}"
    for suspect in cause.get("suspects", []):
        yield f"  suspect: {suspect['id']} ({suspect['summary']})"
    if cause.get("remedy"):
        yield f"  remedy: {cause['remedy']}"
    if cause.get("id"):
        yield f"  more: parity explain {cause['id']}"


def _inconclusive_lines(result: Result) -> Iterable[str]:
    for row in result.disagreeing:
        yield (
            f"witnesses disagree: {row.witness} ({row.lane}, {row.scenario}) is {row.rho:.3g} "
            f"times the noise from the float64 reference at {row.worst_tap}, limit {row.limit:g}"
        )
        for problem in row.problems[:3]:
            yield f"  {problem}"
    if result.unmatched:
        yield f"unmatched taps of the subject: {_few(result.unmatched)}"
    for row in result.witnesses:
        if row.unmatched:
            yield f"unmatched taps of {row.witness}: {_few(row.unmatched)}"


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def _fitting(build: Callable[[Result, bool], Table], result: Result, console: Console) -> Table:
    """Return a table in full where there is room for it, else without what it can spare."""
    wide = build(result, True)
    room = console.options.update(max_width=10 * console.width)
    return (
        wide
        if console.measure(wide, options=room).maximum <= console.width
        else build(result, False)
    )


def _lane_table(result: Result, errors: bool) -> Table:
    """One row a run: its largest error, and the tap that comes closest to its limit."""
    table = _table("subject against the float64 reference (^ by its largest element)")
    for column in ("dtype", "scenario", "mode"):
        table.add_column(column, no_wrap=True)
    for column in ("error", "rho", "limit") if errors else ("rho", "limit"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("nearest its limit", overflow="fold")  # a name is to be copied
    groups: dict[tuple[str, str, str], list[TapRow]] = {}
    for row in result.rows:
        groups.setdefault((row.lane, row.scenario, row.mode), []).append(row)
    for group, rows in groups.items():
        worst = max(rows, key=lambda r: (not r.passed, nearest(r)[0]))
        error = (f"{max(r.error for r in rows):.1e}",) if errors else ()
        _, rho, limit, mark = nearest(worst)
        cells = (*group, *error, f"{rho:.3g}{mark}", f"{limit:g}", worst.tap)
        table.add_row(*cells, style=None if worst.passed else "red")
    return table


def nearest(row: TapRow) -> tuple[float, float, float, str]:
    """Return of a row's two figures the one nearer its limit: nearness, figure, limit, mark."""
    token = (row.rho / row.limit, row.rho, row.limit, "")
    peak = (row.peak_rho / row.peak_limit, row.peak_rho, row.peak_limit, "^")
    return max(token, peak, key=lambda figures: figures[0])


def _logits_line(result: Result) -> str:
    logits = [row for row in result.rows if row.tap == "logits" and row.mode in OWN_RUNS]
    parts = []
    for lane in dict.fromkeys(row.lane for row in logits):
        rows = [row for row in logits if row.lane == lane]
        facts = [row.facts for row in rows]
        flips = sum(f.get("top1_flips", 0) for f in facts)
        unexplained = sum(f.get("unexplained_flips", 0) for f in facts)
        said = f"{flips:.0f} top-1 flips"
        if unexplained:
            said += f", {unexplained:.0f} beyond rounding"
        elif flips and all(row.passed for row in rows):  # else more than rounding is in them
            said += ", within what rounding explains at this dtype"
        shift = max(f.get("shift", 0.0) for f in facts)
        kl = max(f.get("kl_max", 0.0) for f in facts)
        parts.append(f"{lane} KL {kl:.1e}, shift {shift:.1e}, {said}")
    return "logits: " + "; ".join(parts)


def _witness_table(witnesses: list[WitnessRow]) -> Table:
    """One row a witness and dtype, the worst of its scenarios."""
    table = _table("witnesses (gap: to the subject)")
    for column in ("witness", "dtype"):
        table.add_column(column)
    for column in ("taps", "error", "rho", "limit", "gap"):
        table.add_column(column, justify="right")
    groups: dict[tuple[str, str], list[WitnessRow]] = {}
    for row in witnesses:
        groups.setdefault((row.witness, row.lane), []).append(row)
    for group, rows in groups.items():
        worst = max(rows, key=lambda r: (not r.agrees, r.rho))
        errors = f"{max(r.error for r in rows):.1e}", f"{worst.rho:.3g}", f"{worst.limit:g}"
        table.add_row(
            *group,
            str(max(r.compared for r in rows)),
            *(("is the", "gold", "") if worst.is_gold else errors),
            _gap([r for r in rows if r.mode != "grad"]),
            style=None if worst.agrees else "yellow",
        )
    return table


def _gap(forward: list[WitnessRow]) -> str:
    """Say how far a witness's logits are from the subject's; a backward pass shows none."""
    return f"{max(r.subject_gap for r in forward):.1e}" if forward else "-"


def _table(title: str, gap: int = 1) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0))


def _grid(result: Result) -> Table:
    """Draw layers by operators; a cell is log10 of the worst rho of the subject's own run."""
    worst: dict[tuple[int, str], float] = {}
    failed: set[tuple[int, str]] = set()
    for row in result.rows:
        kind, layer = split_name(row.tap)
        if layer is None or row.mode in ("isolated", "probe") or not kind.startswith("layers."):
            continue
        key = layer, kind.removeprefix("layers.")
        worst[key] = max(worst.get(key, 0.0), row.rho)
        if not row.passed:
            failed.add(key)
    # 19 columns in 80 characters: no gap beside the one that the box makes.
    table = _table("log10 rho, layers by operators, on its own values", gap=0)
    table.add_column("layer", justify="right", no_wrap=True)
    for name in LAYER_TAPS:
        table.add_column(_short(name), justify="right", no_wrap=True)
    layers = sorted({layer for layer, _ in worst})
    # Of a deep model, those from just before the first failure on.
    first = max(0, layers.index(min(failed)[0]) - 2) if failed else 0
    first = min(first, max(0, len(layers) - MOST_LAYERS))
    shown = layers[first : first + MOST_LAYERS]
    if len(shown) < len(layers):
        table.caption = f"and {len(layers) - len(shown)} more layers"
    for layer in shown:
        cells = []
        for name in LAYER_TAPS:
            rho = worst.get((layer, name))
            text = "" if rho is None else f"{math.log10(max(rho, 1e-9)):z.0f}"
            wrong = (layer, name) in failed
            style = "bold red" if wrong else "green"
            cells.append(Text("!" + text if wrong else text, style=style))
        table.add_row(str(layer), *cells)
    return table


def _short(name: str) -> str:
    """Shorten a tap's name to a column heading."""
    words = {
        "input_layernorm": "ln1",
        "post_attention_layernorm": "ln2",
        "post_attention": "res",
        "attn_scores": "scr",
        "attn_probs": "prb",
        "attn_context": "ctx",
        "gate_proj": "gat",
        "mlp_act": "act",
        "down_proj": "dwn",
        "input": "in",
        "output": "out",
    }
    return words.get(name, name.removesuffix("_proj").replace("_rope", "~"))


def _coverage_line(result: Result) -> str:
    absent = f", declared absent: {', '.join(result.absent)}" if result.absent else ""
    unmatched = f", unmatched {len(result.unmatched)}" if result.unmatched else ", none unmatched"
    return f"coverage: {result.compared} of {result.expected} taps compared{unmatched}{absent}"


# What a mode's seconds are of.
PASSES = {
    "free": "forward passes",
    "isolated": "on the reference's inputs",
    "decode": "through caches",
    "grad": "gradients",
}


def _cost_line(timing: Mapping[str, float]) -> str:
    """Say what showing and comparing tensors costs, each mode against a run that shows none."""
    costs = []
    for mode, passes in PASSES.items():
        bare, shown = timing.get(f"bare_{mode}_s"), timing.get(f"subject_{mode}_s")
        if shown is not None:
            users = "" if bare is None else f"{bare:.1f} s as users run them, "
            costs.append(f"{passes} {users}{shown:.1f} s with taps")
    if not costs:
        return ""
    return (
        f"cost: {'; '.join(costs)}; comparing {timing.get('comparing_s', 0.0):.1f} s of a "
        f"processor; compiling {timing.get('compiling_s', 0.0):.1f} s, not in these"
    )


def _machine_lines(result: Result) -> Iterable[str]:
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


def _environment_line(result: Result) -> str:
    env = result.environment
    precision = env["matmul_precision"]
    versions = ", ".join(f"{k} {v}" for k, v in env["versions"].items() if v)
    return (
        f"environment: {env['backend']} ({env['device']}), float32 matmuls "
        f"{precision['float32_at_highest']} as run, {precision['float32_at_default']} by default; "
        f"{versions}"
    )
