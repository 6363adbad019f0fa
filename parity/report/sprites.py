"""Pictures for the report: codes to colours, many small ones in one PNG.

Colours tell small from large by lightness alone, and what is wrong by one hue that nothing else
has; both hold for every kind of colour vision.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

from parity.comparison.attention_image import LEVELS, NOTHING

# Light to dark blue; the reserved colour is vermilion.
_SCALE = ("#d3e3f3", "#a6c8e4", "#6fa8d3", "#3f86bf", "#1f639f", "#0f4480", "#082a5c", "#03163a")
VIOLATION = "#d55e00"
_ZERO, _TINY, _NO_NUMBER = "#fffdf3", "#eef3f8", "#7a1fa2"


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


@cache
def palette() -> list[str]:
    """Return the colour of every code; no two are alike, so that a colour tells its code."""
    anchors = np.array([_rgb(colour) for colour in _SCALE], float)
    at = np.linspace(0, len(anchors) - 1, LEVELS + 1)
    channels = [np.interp(at, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
    colours = [_ZERO, _TINY]
    for r, g, b in np.round(np.stack(channels, axis=1)).astype(int).tolist():
        colour = f"#{r:02x}{g:02x}{b:02x}"
        while colour in colours:  # neighbours at the dark end round alike
            b += 1
            colour = f"#{r:02x}{g:02x}{b:02x}"
        colours.append(colour)
    return [*colours, _NO_NUMBER, "#ffffff"]


def picture(codes: np.ndarray) -> str:
    """Return codes [rows, columns] as the data URI of a PNG; `NOTHING` is transparent."""
    image = Image.fromarray(np.ascontiguousarray(codes, np.uint8), "P")
    image.putpalette([channel for colour in palette() for channel in _rgb(colour)])
    return _data_uri(image, transparency=NOTHING)


def marks(wrong: np.ndarray, *, strip: bool = False) -> str | None:
    """Return the layer of violations as a data URI, None if there are none.

    Args:
        wrong: which cells [rows, columns].
        strip: fill the lower third of a cell, so that its colour stays to be seen.
    """
    if not wrong.any():
        return None
    if strip:
        cells = np.zeros((*wrong.shape, 3), bool)
        cells[..., 2] = wrong
        wrong = cells.transpose(0, 2, 1).reshape(-1, wrong.shape[1])
    image = Image.fromarray(wrong.astype(np.uint8), "P")
    image.putpalette([255, 255, 255, *_rgb(VIOLATION)])
    return _data_uri(image, transparency=0)


def arrange_tiles(tiles: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Return rows of tiles of one size as one picture."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in tiles], axis=0)


def _data_uri(image: Image.Image, *, transparency: int) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=transparency)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
