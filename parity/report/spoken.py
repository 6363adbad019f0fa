"""What each figure of the page says, for who does not see it: the finding first."""

from __future__ import annotations

import numpy as np

from parity.comparison.attention_image import LEAKED, LOST, AttentionImages
from parity.report.figures import MaskTiles
from parity.report.sections import RunSection


def operators(run: RunSection) -> str:
    """Say which operators of which layers are beyond their limit."""
    layered = [row for row in run.rows if row.tap not in {one.tap for one in run.outside}]
    failed = list(dict.fromkeys(row.tap for row in layered if not row.passed))
    count = len({row.tap for row in layered})
    about = "log rho of each operator in each layer"
    if not failed:
        return f"{about}: all {count} within their limit, nearest {run.worst.tap}"
    return f"{about}: {len(failed)} of {count} beyond their limit, most {run.worst.tap}"


def tokens(run: RunSection) -> str:
    """Say at how many tokens of how many stages an operator is beyond its limit."""
    grid = run.tokens
    assert grid is not None
    cells = grid.stages * grid.columns * grid.batch
    found = f"{grid.beyond} of {cells} beyond the limit" if grid.beyond else "all within the limit"
    return f"log rho of the worst operator of each stage at each token: {found}"


def growth(run: RunSection) -> str:
    """Say how the error grows from the first stage to the last, and where it leaves the band."""
    assert run.growth is not None
    points = run.growth.points
    first, last = points[0], points[-1]
    beyond = next((f", beyond its limit from {p.name} on" for p in points if not p.passed), "")
    return (
        f"error of each layer's output over the noise band: {first.error:.1e} after {first.name}, "
        f"{last.error:.1e} after {last.name}{beyond or ', within its limits'}"
    )


def weights(maps: AttentionImages, at: int, name: str) -> str:
    """Say of whose head a map is, and how far both sides differ in it."""
    wrong = _count(int(np.isin(maps.cells[at], (LEAKED, LOST)).sum()))
    return (
        f"attention of layer {maps.layer}, head {maps.heads[at]}, {name}: the sides differ by up "
        f"to {maps.moved[at]:.1e}, {wrong}"
    )


def mask(tiles: MaskTiles, column: int, row: int) -> str:
    """Say what a mask is and how many cells of it are not as meant."""
    wrong = f", {_count(tiles.wrong[column][row])}" if column else ""
    return f"mask, {tiles.columns[column]}, row {row}{wrong}"


def _count(wrong: int) -> str:
    return f"{wrong} violation{'' if wrong == 1 else 's'}" if wrong else "no violations"
