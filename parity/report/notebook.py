"""What a notebook shows of a result: the report's own pictures, in a piece of HTML by itself.

It fetches nothing and runs nothing; the page that `write_report` writes has the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxllama.command_line.notebook import PICTURE, in_html, themed
from parity.comparison.attention_image import LEAKED, LOST, AttentionImages
from parity.report.figures import operator_grid
from parity.report.sprites import marks, picture
from parity.report.wording import brief
from parity.result import Result, TapResult

# Of a layer; the page has them all.
_MOST_HEADS = 4
_COLOURS = {
    "equal": "#00695a",
    "divergent": "#b84f00",
    "inconclusive": "#7d6200",
    "quality": "#1f639f",
}


def result_html(result: Result) -> str:
    """Return the verdict, the place, the cause, a grid of operators and the layer that fails."""
    verdict, *lines = brief(result)
    rest = verdict.removeprefix(result.verdict)
    colour = _COLOURS[result.verdict]
    badge = (
        f"<b style='color:#fff;background:{colour};padding:0 .4em;border-radius:3px'>"
        f"{result.verdict}</b>"
    )
    parts = [f"<p style='margin:0'>{badge}{in_html(rest)}</p>"]
    parts += [f"<p style='margin:2px 0'>{in_html(line)}</p>" for line in lines]
    if (run := _shown_run(result)) and (grid := operator_grid(run)) is not None:
        one = run[0]
        title = f"log rho of each operator in each layer: {one.lane}, {one.scenario}, {one.mode}"
        layers = f"layers {grid.layers[0]} to {grid.layers[-1]}, downwards"
        parts.append(
            _figure(
                title,
                f"{layers}; {', '.join(grid.names)}",
                [
                    _picture(
                        grid.picture.data, grid.picture.marks, title, 340, 12 * len(grid.layers)
                    )
                ],
            )
        )
    if (images := _shown_maps(result)) is not None:
        parts.append(_attention(images))
    return themed(f"<div style='font-size:13px;max-width:720px'>{''.join(parts)}</div>")


def attention_html(images: AttentionImages) -> str:
    """Return a layer's attention maps: of some heads both and their difference."""
    return themed(_attention(images))


def _attention(images: AttentionImages) -> str:
    figures = []
    order = sorted(range(len(images.heads)), key=lambda i: -images.moved[i])[:_MOST_HEADS]
    for i in sorted(order):
        cells = images.cells[i]
        wrong = marks((cells == LEAKED) | (cells == LOST))
        head = f"layer {images.layer}, head {images.heads[i]}"
        title = f"{head}: differs by {images.moved[i]:.2e}"
        shown = [
            _picture(picture(codes), wrong, f"{head}, {name}", 110, 110)
            for name, codes in zip(
                ("the subject", "PyTorch", "difference"), images.weights[i], strict=True
            )
        ]
        about = "the subject, PyTorch, difference; queries downwards, keys to the right"
        figures.append(_figure(title, about, shown))
    left = len(images.heads) - len(figures)
    more = f"<p style='margin:2px 0'>and {left} more heads</p>" if left else ""
    return "".join(figures) + more


def _shown_run(result: Result) -> Sequence[TapResult]:
    """Return the rows of the run that diverges first, else of the first run on its own values."""
    first = result.first_divergence
    own = [row for row in result.rows if row.mode == "free"]
    named = first.row if first is not None and first.kind != "reading" else None
    one = named or (own[0] if own else None)
    if one is None:
        return []
    key = one.lane, one.scenario, one.mode
    return [row for row in result.rows if (row.lane, row.scenario, row.mode) == key]


def _shown_maps(result: Result) -> AttentionImages | None:
    """Return the maps of the first layer that fails, if any are kept."""
    for snapshot in result.snapshots:
        if snapshot.failed_layer in snapshot.sheets:
            return snapshot.sheets[snapshot.failed_layer]
    return None


def _figure(title: str, about: str, pictures: Sequence[str]) -> str:
    return (
        f"<figure style='margin:8px 0 0'><figcaption><b>{in_html(title)}</b></figcaption>"
        f"<div style='display:flex;gap:6px'>{''.join(pictures)}</div>"
        f"<small>{in_html(about)}</small></figure>"
    )


def _picture(data: str, wrong: str | None, label: str, width: int, height: int) -> str:
    """Return a picture with its violations on top, both of so many pixels."""
    fill = (
        "position:absolute;width:100%;height:100%;max-width:none;margin:0;image-rendering:pixelated"
    )
    over = f"<img alt='' src='{wrong}' style='{fill}'>" if wrong else ""
    said = f"{label}{', violations marked' if wrong else ''}"
    return (
        f"<div style='position:relative;width:{width}px;height:{height}px;max-width:100%'>"
        f"<img class='{PICTURE}' alt='{in_html(said)}' src='{data}' "
        f"style='{fill};background:#dfe4e8'>{over}</div>"
    )
