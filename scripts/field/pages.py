"""The pages of `docs/field/`, of what the runs left there as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs import WHAT

WIDTH = 118
HEAD = """# The state of the field

Published Llamas, each with the same weights through its own loader, in float32 against parity's
float64 reference: forward (free and operator by operator), decode through the peer's own cache,
gradients. Written by

```sh
python scripts/field_report.py
```

which installs each peer into an environment of its own (`scripts/field/PEER.txt`), runs it, and
where it differs mends it in memory and runs it again. One peer:
`python scripts/field_report.py tunix`. Adapters:
[parity/subjects/adapters/peers](../../parity/subjects/adapters/peers). Only what was run is here. A
verdict is of the taps that a peer shows, on these inputs; what it does not show is on its page.
"""


def write(field: Path) -> None:
    """Write README.md and a page a peer, of the JSON files in a folder."""
    records = [json.loads(path.read_text()) for path in sorted(field.glob("*.json"))]
    run = [one for one in records if "runs" in one]
    for one in run:
        (field / f"{one['peer']}.md").write_text("\n".join(page(one)).rstrip() + "\n")
    (field / "README.md").write_text("\n".join(front(run, records)).rstrip() + "\n")


def front(run: list[dict[str, Any]], records: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of README.md."""
    yield HEAD
    yield "| configuration | |"
    yield "|---|---|"
    yield from (f"| {name} | {what} |" for name, what in WHAT.items())
    yield ""
    yield f"| peer | release | adapter, lines | {' | '.join(WHAT)} |"
    yield f"|---|---|---|{'---|' * len(WHAT)}"
    for one in run:
        by_name = {each["config"]: each for each in one["runs"]}
        cells = (cell(by_name.get(name)) for name in WHAT)
        release = one["requirement"].partition("==")[2]
        peer = f"[{one['peer']}]({one['peer']}.md)"
        yield f"| {peer} | {release} | {one['lines']} | {' | '.join(cells)} |"
    yield ""
    yield "A cell has the verdict, and the taps compared of all that there are."
    yield ""
    yield "## What was found"
    yield ""
    for one in run:
        yield from found(one)
    failed = [one for one in records if "runs" not in one]
    if failed:
        yield "\n## What does not install here\n"
    for one in failed:
        yield f"{one['peer']}:\n\n```\n$ {one['command']}"
        yield from one["error"]
        yield "```\n"


def cell(run: dict[str, Any] | None) -> str:
    """Return a run in a table's cell."""
    if run is None:
        return "not run"
    if "error" in run:
        return "refused"
    return f"{run['verdict']} {run['compared']}/{run['expected']}"


def found(record: dict[str, Any]) -> Iterator[str]:
    """Yield a line a finding of a peer."""
    by_cause: dict[str, list[str]] = {}
    for run in record["runs"]:
        if run.get("verdict") == "divergent":
            by_cause.setdefault(causes(run), []).append(run["config"])
    for said, where in by_cause.items():
        again = [one.get("mended", {}) for one in record["runs"] if one["config"] in where]
        mended = sorted({one["verdict"] for one in again if "verdict" in one})
        after = f" Mended: {', '.join(mended)}." if mended else ""
        yield f"- **{record['peer']}** ({', '.join(where)}): {said}.{after}"


def causes(run: dict[str, Any]) -> str:
    """Return what a divergent run is said to come of."""
    cause = run.get("cause")
    if not cause or not cause["confirmed"]:
        return f"differs from `{run['first']['tap']}` on, unexplained"
    return "; ".join(
        f"{one['title']}: effective {one['effective']}, configured {one['configured']}"
        for one in cause["named"]
    )


def page(record: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a peer's page."""
    yield f"# {record['peer']}\n"
    yield f"{record['about']}\n"
    releases = ", ".join(f"{name} {release}" for name, release in record["versions"].items())
    yield f"Releases: {releases}. Adapter: {record['lines']} lines.\n"
    yield "| configuration | verdict | forward | decode | gradients | taps | first divergence |"
    yield "|---|---|---|---|---|---|---|"
    for run in record["runs"]:
        if "error" in run:
            yield f"| {run['config']} | refused | | | | | |"
            continue
        modes = (run[column] or "not shown" for column in ("forward", "decode", "gradients"))
        first = f"`{run['first']['tap']}`" if "first" in run else ""
        taps = f"{run['compared']} of {run['expected']}"
        yield f"| {run['config']} | {run['verdict']} | {' | '.join(modes)} | {taps} | {first} |"
    yield ""
    for run in record["runs"]:
        yield from section(record["peer"], run)
    absent = sorted({name for run in record["runs"] for name in run.get("absent", [])})
    forward = [name for name in absent if not name.startswith("grad.")]
    yield f"Not shown: {', '.join(f'`{name}`' for name in forward)}.\n"


def section(peer: str, run: dict[str, Any]) -> Iterator[str]:
    """Yield what is told of a run that is not simply equal."""
    if run.get("verdict") == "equal":
        return
    yield f"## {run['config']}\n"
    if "error" in run:
        yield f"```\n{run['error']}\n```\n"
        return
    yield f"{causes(run)}.\n" if "first" in run else f"{run['headline']}.\n"
    yield "To reproduce:\n"
    yield f"```sh\npython scripts/field_report.py {peer} --configs {run['config']}\n```\n"
    yield "```"
    yield run["headline"]
    yield from run.get("first", {}).get("lines", [])
    yield from (run.get("cause") or {}).get("lines", [])
    yield "```\n"
    mended = run.get("mended")
    if mended:
        verdict = mended.get("headline") or mended.get("error")
        yield f"Mended in memory (`scripts/field/mends.py`): {mended['what']}.\n"
        yield f"```\n{verdict}\n```\n"
