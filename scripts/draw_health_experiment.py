"""Draw what `health_experiment.py` and `made_to_fail.py` found: curves, and the page's tables.

    python scripts/draw_health_experiment.py

reads docs/health-experiment.json and docs/made-to-fail.json, writes docs/health-experiment.svg and,
between its marks, docs/health-experiment.md.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"
START, STOP = "<!-- made by scripts/draw_health_experiment.py: {} -->", "<!-- end -->"
Rows = Sequence[Sequence[Any]]


def table(head: Sequence[str], rows: Rows) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def share(part: int, whole: int, interval: Sequence[float]) -> str:
    """Return a share with its interval, in words."""
    if not whole:
        return "none"
    low, high = (f"{100 * end:.0f}" for end in interval)
    return f"{part} of {whole} ({low} to {high} %)"


def warned(content: Mapping[str, Any]) -> str:
    """Return the table of warnings in time and of silence, with and without the update's figure."""
    rows = []
    # Results of before that was counted are without.
    shipped = all("silent_shipped" in found for found in content["reports"].values())
    for name, found in content["reports"].items():
        notices, runs = found["notice"], content["runs"][name]
        said = f"{statistics.median(notices):g} ({min(notices)} to {max(notices)})"
        first = sorted({min(one[0] for one in run["first"].values()) for run in lost(runs)})
        rows.append(
            [
                name,
                share(found["warned_in_time"], found["diverging"], found["warned_interval"]),
                ", ".join(map(str, first)),
                said,
                f"{sum(in_time(run, but='update_ratio') for run in lost(runs))}",
                share(found["silent"], found["sane"], found["silent_interval"]),
                f"{found['neither_warned']} of {found['neither']}",
                *([f"{found['silent_shipped']} of {found['sane']}"] if shipped else []),
            ]
        )
    head = (
        "model, seeds",
        "diverging runs warned in time",
        "first warned at step",
        "steps of notice: median, range",
        "in time without `update_ratio`",
        "sane runs silent",
        "of the rest warned",
        *(["sane runs silent under the shipped thresholds"] if shipped else []),
    )
    return table(head, rows)


def lost(runs: Rows) -> list[Any]:
    """Return the runs that diverge and were warned."""
    return [run for run in runs if run["outcome"] == "diverging" and run["first"]]


def in_time(run: Any, *, but: str) -> bool:
    """Return whether a run was warned in time by another figure."""
    steps = [first[0] for figure, first in run["first"].items() if figure != but]
    return min(steps, default=math.inf) < run["exceeds"]


def by_figure(content: Mapping[str, Any]) -> str:
    """Return the table of thresholds, and of whom each warned."""
    reports = content["reports"]
    rows = [
        [f"`{figure}`", f"{limit:g}", *(found["by_figure"][figure] for found in reports.values())]
        for figure, limit in content["thresholds"].items()
    ]
    return table(("figure", "threshold", *reports), rows)


def outcomes(content: Mapping[str, Any]) -> str:
    """Return the table of what became of the runs at each rate."""
    rates = sorted({run["rate"] for run in next(iter(content["runs"].values()))})
    rows = []
    for name, runs in content["runs"].items():
        for outcome in ("sane", "neither", "diverging"):
            counted = [
                sum(run["rate"] == rate and run["outcome"] == outcome for run in runs) or ""
                for rate in rates
            ]
            rows.append([name, outcome, *counted])
    return table(("model, seeds", "outcome", *(f"{rate:g}" for rate in rates)), rows)


def mitigated(content: Mapping[str, Any]) -> str:
    """Return the table of what each mitigation does."""
    rows = [
        [
            one["name"],
            f"{one['rate']:g}",
            f"{one['diverging']} of {one['runs']}",
            f"{one['final']:.2f}",
            f"{one['warned']} of {one['runs']}",
            ", ".join(f"`{name}` {count}" for name, count in one["figures"].items()) or "none",
        ]
        for one in content["mitigations"]
    ]
    head = ("mitigation", "rate", "diverging", "last losses, median", "warned", "runs by figure")
    return table(head, rows)


def failures(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of models made to fail."""
    rows = [
        [
            one["checkpoint"],
            one["failure"],
            one["layer"],
            "yes" if one["named"] else "**no**",
            one["first"] or "nothing",
            ", ".join(one["others"]) or "-",
        ]
        for one in found
    ]
    head = ("checkpoint", "what is done", "layer", "named there", "found first", "after it")
    return table(head, rows)


def draw(content: Mapping[str, Any]) -> Figure:
    """Return the curves of one seed: losses, and where each run is first warned."""
    runs = [run for group in content["runs"].values() for run in group if run["losses"]]
    rates = sorted({run["rate"] for run in runs})
    colours = mpl.colormaps["viridis"]
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    places = figure.subplots(2, 2, sharex=True, sharey=True)
    for row, dtype in enumerate(("f32", "bf16")):
        for column, warmup in enumerate((False, True)):
            axes = places[row, column]
            for run in runs:
                kind = run["kind"]
                if (kind["dtype"], kind["warmup"]) != (dtype, warmup):
                    continue
                colour = colours(rates.index(run["rate"]) / (len(rates) - 1))
                steps = range(1, len(run["losses"]) + 1)
                axes.plot(steps, run["losses"], color=colour, lw=1, label=f"{run['rate']:g}")
                first = min((found[0] for found in run["first"].values()), default=None)
                if first is not None:
                    axes.plot(first, run["losses"][first - 1], "v", color=colour, mec="black")
            axes.set_title(f"{dtype}, {'warm-up' if warmup else 'no warm-up'}")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.grid(alpha=0.3)
    for axes in places[1]:
        axes.set_xlabel("step")
    for axes in places[:, 0]:
        axes.set_ylabel("loss, nats")
    handles, labels = places[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="rate", loc="outside right center")
    return figure


def put_in(page: str, name: str, text: str) -> str:
    """Return a page with a text between its marks."""
    start = START.format(name)
    found = re.compile(re.escape(start) + r"\n.*?" + re.escape(STOP), re.DOTALL)
    if not found.search(page):
        raise SystemExit(f"the page has no mark {start!r}")
    return found.sub(lambda _: f"{start}\n\n{text}\n\n{STOP}", page)


def main() -> None:
    """Write the picture and the page."""
    content = json.loads((DOCS / "health-experiment.json").read_text())
    failed = json.loads((DOCS / "made-to-fail.json").read_text())
    path = DOCS / "health-experiment.md"
    page = path.read_text()
    for name, text in (
        ("warned", warned(content)),
        ("figures", by_figure(content)),
        ("outcomes", outcomes(content)),
        ("mitigations", mitigated(content)),
        ("failures", failures(failed)),
    ):
        page = put_in(page, name, text)
    # The same JSON gives the same bytes.
    mpl.rcParams["svg.hashsalt"] = "jaxllama"
    mpl.rcParams["svg.fonttype"] = "none"
    draw(content).savefig(DOCS / "health-experiment.svg", metadata={"Date": None})
    path.write_text(page)


if __name__ == "__main__":
    main()
