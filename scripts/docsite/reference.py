"""A page for every cause, rule, metric and exit code, with a picture of what is found.

Texts are those of `parity explain`; pictures are drawn of `docs/site/findings`, which
`scripts/docs_findings.py` writes, and of the examples that rules of lint carry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from docsite import drawing
from docsite.stage import ROOT, Stage
from parity.commands import catalogue
from parity.diagnose import cause as causes
from parity.health import rule as health
from parity.lint import rule as lint

FINDINGS = ROOT / "docs" / "site" / "findings"
SPLIT = {"docs/exit-codes.md": r"^## Exit code (\d+)$", "docs/metrics.md": r"^## (\w+)$"}
_MEANT = re.compile(r"([*<$])")
_TICKED = re.compile(r"(`[^`]*`)")
# Of families of causes: in the order of a model's pass.
FAMILIES = {
    "rope": "Rotary positions",
    "norm": "Norms",
    "attention": "Attention",
    "masks": "Masks",
    "cache": "The cache",
    "blocks": "Blocks",
    "weights": "Weights",
    "head": "The head",
    "gradients": "Gradients",
    "": "What no name fits",
}


def findings(name: str) -> dict[str, Any]:
    """Return what is kept of planted faults: `causes`, `health` or `figures`."""
    kept: dict[str, Any] = json.loads((FINDINGS / f"{name}.json").read_text(encoding="utf-8"))
    for one in kept.values():
        if isinstance(one, dict) and "taps" in one:
            one["taps"] = kept[one["taps"]].split()
    return {key: one for key, one in kept.items() if not isinstance(one, str)}


def plain(text: str) -> str:
    """Return text of a terminal as Markdown that shows it as it is; what is in ticks stays."""
    parts = _TICKED.split(text)
    return "".join(p if p.startswith("`") else _MEANT.sub(r"\\\1", p) for p in parts)


def page(text: str) -> str:
    """Return a page of `parity explain` as Markdown, whose headings alone are marked up."""
    return "\n".join(line if line.startswith("#") else plain(line) for line in text.splitlines())


def block(lines: list[str]) -> str:
    """Return lines of a terminal as a block."""
    return "\n".join(["```text", *lines, "```"])


# Causes

CAUSES = """\
# Causes

What `parity run` may name, once an experiment has shown it: the reference, made wrong in that
way, agrees with the subject. `parity explain ID` prints the same pages. Each has what was found
where the selftest's fault of that kind was planted in a small model
(`python scripts/docs_findings.py causes`).
"""


def write_causes(stage: Stage) -> None:
    """Write a page for every cause, and an index by family."""
    kept = findings("causes")
    by_family: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for name, file in causes.catalogue().items():
        family = file.name.removeprefix("parity.diagnose.causes.").rpartition(".")[0]
        by_family[family].append(name)
        parts = [page(file.cause.page()), *_cause_finding(name, kept.get(name))]
        stage.write(f"causes/{name}.md", "\n\n".join(parts) + "\n")
    lines = [CAUSES]
    for family, names in by_family.items():
        rows = [
            f"| [{name}]({name}.md) | {plain(causes.catalogue()[name].cause.title)} |"
            for name in sorted(names)
        ]
        lines += ["", f"## {FAMILIES[family]}", "", "| cause | |", "|---|---|", *rows]
    stage.write("causes/index.md", "\n".join([*lines, "", toctree("*"), ""]))


def _cause_finding(name: str, kept: Mapping[str, Any] | None) -> Iterator[str]:
    if kept is None:
        return
    yield "## As it is found"
    yield f"Planted in a small model: {plain(kept['fault'])}. `parity run` says:"
    yield block(kept["said"])
    if "mask" in kept:
        cells = kept["mask"]["cells"]
        label = (
            f"The mask that was meant, and the one that was obeyed, in row {kept['mask']['row']}"
        )
        yield drawing.mask(both(cells), f"{label}; {legend(cells)}.")
    own, alone = ([np.nan if v is None else v for v in kept[k]] for k in ("own", "alone"))
    yield drawing.flow(
        kept["taps"],
        own,
        alone,
        "Every tap in the order in which it is computed, as a share of its limit. Bars: on the "
        "subject's own values."
        + " Dots: each operator on the reference's values."
        * bool(np.isfinite(alone).any()),
    )


def both(cells: list[str]) -> list[tuple[str, list[str]]]:
    """Return the intended mask beside the observed one, from what each cell does."""
    meant = {drawing.LEAKED: drawing.HIDDEN, drawing.LOST: drawing.SEEN}
    intended = ["".join(meant.get(cell, cell) for cell in row) for row in cells]
    return [("intended", intended), ("observed", cells)]


def legend(cells: list[str]) -> str:
    """Return in words what is wrong with a mask's cells."""
    every = "".join(cells)
    counts = [
        (every.count(drawing.LEAKED), "seen that may not be"),
        (every.count(drawing.LOST), "hidden that should be seen"),
    ]
    said = [f"{count} cells are {what}" for count, what in counts if count]
    return " and ".join(said) or "every cell is as intended"


# Rules of lint


def append_lint_pictures(stage: Stage) -> None:
    """Add to every rule's page, which is kept in the repository, its example drawn."""
    for name, file in lint.catalogue().items():
        drawn = _lint_picture(file) if file.rule.kind == "static" else _probe_picture(name, file)
        if drawn:
            stage.append(f"lint/{name}.md", f"## The example\n\n{drawn}")


def _lint_picture(file: lint.RuleFile) -> str:
    case = file.mutant()
    if case.seen is None:
        return ""
    seen = _first(case.seen)
    wrong = (
        np.ones_like(seen) if file.rule.id == "M01" else seen
    )  # one more in a score hides nothing
    if case.expected is None:
        return drawing.mask([("given", _letters(seen, seen))], "The mask that is given.")
    expected = _first(case.expected)
    if expected.shape != seen.shape:
        return drawing.mask([("given", _letters(seen, seen))], "The mask that is given.")
    cells = _letters(wrong, expected)
    if (wrong == expected).all():
        return drawing.mask(
            [("given", cells)], "Who sees whom is as intended; what is wrong is how it is said."
        )
    return drawing.mask(
        both(cells), f"The mask that is meant, and the one that is given; {legend(cells)}."
    )


def _probe_picture(name: str, file: lint.RuleFile) -> str:
    """Draw which mask an attention obeys, where a rule asks for that."""
    if name != "K01":
        return ""
    from parity.lint.attentions import ways
    from parity.lint.probe_cases import cases
    from parity.lint.probes import identity_probe

    probed = file.mutant()
    for case in cases():
        for way, mask in ways(probed, case):
            obeyed = _first(identity_probe(probed, case, mask) != 0)
            cells = _letters(obeyed, case.mask[0])
            if (obeyed != case.mask[0]).any():
                label = f"On {way}: the mask that is given, and the one that is obeyed"
                return drawing.mask(both(cells), f"{label}; {legend(cells)}.")
    return ""


def _first(cells: np.ndarray) -> np.ndarray:
    """Return the first row's first head of [B, N, T, S]."""
    return np.asarray(cells).reshape(-1, *cells.shape[-2:])[0].astype(bool)


def _letters(observed: np.ndarray, intended: np.ndarray) -> list[str]:
    states = np.where(observed, drawing.SEEN, drawing.HIDDEN)
    states = np.where(observed & ~intended, drawing.LEAKED, states)
    states = np.where(~observed & intended, drawing.LOST, states)
    return ["".join(row) for row in states]


# Rules of health, and metrics

HEALTH = """\
# Rules of health

What `parity health` may find in a model by itself
([the health of a model's attention](../health.md)). Each page has what was found in a small model
made to fail in that way (`python scripts/docs_findings.py health`).
"""


def write_health_rules(stage: Stage) -> None:
    """Write a page for every rule of health, and an index."""
    kept = findings("health")
    rows = []
    for name, file in health.catalogue().items():
        rule = file.RULE
        parts = [page(rule.page()), *_health_finding(kept.get(name))]
        stage.write(f"health-rules/{name}.md", "\n\n".join(parts) + "\n")
        rows.append(
            f"| [{name}]({name}.md) | {plain(rule.title)} | {rule.severity} | {rule.basis} |"
        )
    lines = [HEALTH, "| rule | | severity | threshold from |", "|---|---|---|---|", *rows]
    stage.write("health-rules/index.md", "\n".join([*lines, "", toctree("*"), ""]))


def _health_finding(kept: Mapping[str, Any] | None) -> Iterator[str]:
    if kept is None:
        return
    yield "## As it is found"
    yield f"Planted in `tiny`: {plain(kept['planted'])}. `parity health` says:"
    yield block([kept["said"]])
    figure = kept["figure"]
    yield f"The figure [{figure}](../metrics/{figure}.md), of the whole model:"
    yield _figure(figure, kept["values"], kept["flagged"])
    if "map" in kept:
        where = f"layer {kept['map']['layer']}, head {kept['map']['head']}"
        yield drawing.attention(
            kept["map"]["cells"],
            f"Attention of {where}: queries downwards, keys to the right; darker is more weight, "
            "vermilion on a hidden key.",
        )


def _figure(name: str, values: list[list[float]], flagged: list[list[int]] | None = None) -> str:
    """Draw a figure of every head, or of every layer."""
    array = np.array(values, float)
    wrong = np.zeros(array.shape, bool) if flagged is None else np.array(flagged, bool)
    if array.shape[1] == 1:
        rows = [(f"layer {i}", float(row[0]), bool(wrong[i, 0])) for i, row in enumerate(array)]
        found = "; what is found is vermilion" if wrong.any() else ""
        return drawing.bars(rows, f"{name} of each layer{found}.")
    found = "; what is found is framed" if wrong.any() else ""
    return drawing.heads(array, wrong, f"{name} of each head, dark where it is large{found}.")


def split_pages(stage: Stage) -> None:
    """Make of every section of the exit codes and of the metrics a page of its own."""
    kept, figures = findings("health"), findings("figures")
    flow = findings("causes")["rope-theta"]
    for path, heading in SPLIT.items():
        text = (stage.root / path).read_text(encoding="utf-8")
        start, *sections = re.split(heading, text, flags=re.MULTILINE)
        folder = Path(stage.places[path]).parent.as_posix()
        names = sections[0::2]
        for name, body in zip(names, sections[1::2], strict=True):
            title = f"Exit code {name}" if name.isdigit() else name
            parts = [f"# {title}", _own_pages(stage.relinked(body.strip(), path), names)]
            if folder == "metrics":
                parts += _metric_picture(name, kept, figures, flow)
            stage.write(f"{folder}/{name}.md", "\n\n".join(parts) + "\n")
        index = _own_pages(stage.relinked(start.strip(), path), names)
        stage.write(stage.places[path], f"{index}\n\n{toctree(*names)}\n")


def _own_pages(text: str, names: list[str]) -> str:
    """Return text in which links to sections lead to the pages that these have become."""
    slugs = {name.lower(): name for name in names} | {f"exit-code-{name}": name for name in names}
    return re.sub(r"\]\(#([\w-]+)\)", lambda found: f"]({slugs[found[1]]}.md)", text)


def _metric_picture(
    name: str, kept: Mapping[str, Any], figures: Mapping[str, Any], flow: Mapping[str, Any]
) -> Iterator[str]:
    if name == "rho":
        own, alone = ([np.nan if v is None else v for v in flow[k]] for k in ("own", "alone"))
        where = f"{plain(flow['fault'])} ([rope-theta](../causes/rope-theta.md))"
        yield f"Of every tap over its limit, where {where}:"
        yield drawing.flow(
            flow["taps"], own, alone, "rho over its limit, in the order in which taps are computed."
        )
    if name in figures:
        yield "Of `tiny`, whose weights are random:"
        yield _figure(name, figures[name])
    rules = [rule for rule, one in kept.items() if one["figure"] == name and np.any(one["flagged"])]
    for rule in rules:
        planted = plain(kept[rule]["planted"])
        yield f"Where [{rule}](../health-rules/{rule}.md) is found ({planted}):"
        yield _figure(name, kept[rule]["values"], kept[rule]["flagged"])


def toctree(*entries: str, caption: str = "") -> str:
    """Return a list of pages for the navigation, shown nowhere else."""
    glob = [":glob:"] if "*" in "".join(entries) else []
    said = [f":caption: {caption}"] if caption else []
    return "\n".join(["```{toctree}", ":hidden:", *said, *glob, "", *entries, "```"])


def missing(stage: Stage) -> list[str]:
    """Return what has no page: names of causes, rules and metrics."""
    places = {"causes": "causes", "metrics": "metrics"}
    found = [
        f"{folder}/{name}.md" for kind, folder in places.items() for name in catalogue.listed(kind)
    ]
    found += [f"lint/{name}.md" for name in lint.catalogue()]
    found += [f"health-rules/{name}.md" for name in health.catalogue()]
    found += [f"exit-codes/{code}.md" for code in (0, 1, 2, 3, 4, 5, 130)]
    return [place for place in found if not (stage.out / place).is_file()]
