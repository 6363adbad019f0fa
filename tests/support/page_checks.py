"""What a page must be to everyone: by keys, by ear, on a narrow screen, in the dark, on paper.

A page is loaded once and then looked at in all its states, which is also how a reader changes them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page

# Wide, and a telephone; A4 without its margins of 14 mm.
WIDTHS = (1280, 400)
PAPER = {"width": 688, "height": 1017}

# What an element's text is cut off by: the window, or an ancestor that hides what sticks out of it.
# What scrolls can be scrolled to.
_CLIPPED = """() => {
  const found = [], name = (e) => `${e.tagName.toLowerCase()}.${e.className}`;
  const cut = (e, box) => {
    for (let up = e; up; up = up.parentElement) {
      const style = getComputedStyle(up), outer = up.getBoundingClientRect();
      if (["auto", "scroll"].includes(style.overflowX))  // what is before its start stays out
        return box.left < outer.left - up.scrollLeft - 1 ? ` by ${name(up)}` : "";
      if (style.overflowX !== "visible" || style.overflowY !== "visible")
        if (box.left < outer.left - 1 || box.right > outer.right + 1 ||
            box.top < outer.top - 1 || box.bottom > outer.bottom + 1) return ` by ${name(up)}`;
    }
    return box.left < -1 || box.right > innerWidth + 1 ? " by the window" : "";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const e = node.parentElement, range = document.createRange();
    if (!node.data.trim() || e.closest(".sr, .skip, script, style")) continue;
    if (!e.checkVisibility()) continue;
    range.selectNodeContents(node);
    const by = cut(e, range.getBoundingClientRect());
    if (by) found.push(`${node.data.trim()}: cut off${by}`);
  }
  for (const group of document.querySelectorAll(".ylabels, .xlabels, .places, .ramp")) {
    const boxes = [...group.children].filter((e) => e.checkVisibility())
      .map((e) => [e.textContent, e.getBoundingClientRect()]);
    boxes.forEach(([text, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 1 && down > 1) found.push(`${text}: under ${other}`);
    }));
  }
  return found;
}"""

# What takes part in the answers to the pointer and cannot be come to by keys.
_UNREACHED = """() => [...document.querySelectorAll(".tile, .points")]
  .filter((e) => e.checkVisibility() && e.tabIndex < 0 && !e.closest(".three > div + div"))
  .map((e) => e.outerHTML.slice(0, 120))
  .concat([...document.querySelectorAll("[title]:not(iframe)")].map((e) => `title: ${e.title}`))"""


@cache
def _axe() -> str:
    return files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


def barriers(page: Page) -> list[str]:
    """Return what axe-core finds serious or critical, with the elements."""
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(_axe())  # by the browser itself: the page's policy forbids other scripts
    found: dict[str, Any] = page.evaluate("axe.run({resultTypes: ['violations']})")
    return [
        f"{one['id']}: {node['html'][:160]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def clipped(page: Page) -> list[str]:
    """Return labels that are cut off, or under each other; the page's own sideways scroll, too."""
    found: list[str] = page.evaluate(_CLIPPED)
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return [*found, *([f"the page is {wide} pixels too wide"] if wide > 0 else [])]


def unreached(page: Page) -> list[str]:
    """Return what the pointer reads and keys do not."""
    return list(page.evaluate(_UNREACHED))


def ground(page: Page) -> float:
    """Return how light most of what is on the screen is, from 0 to 255."""
    shot = Image.open(io.BytesIO(page.screenshot())).convert("L")
    return float(np.bincount(np.array(shot).reshape(-1)).argmax())


def check_in_every_state(page: Page) -> None:
    """Hold a page to all of this, wide and narrow, light and dark, on paper; then put it back."""
    assert page.title() and page.locator("html").get_attribute("lang") == "en"
    size = page.viewport_size
    assert size is not None
    try:
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert clipped(page) == [], width
            assert unreached(page) == []
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)  # the page is not loaded again
                assert barriers(page) == [], (width, scheme)
                assert (ground(page) > 200) == (scheme == "light")
        check_on_paper(page)
    finally:
        page.set_viewport_size(size)
        page.emulate_media(color_scheme="light", media="screen")


@contextmanager
def on_paper(page: Page) -> Iterator[None]:
    """Lay a page out for A4, of a reader whose screen is dark."""
    size = page.viewport_size
    page.set_viewport_size(PAPER)
    page.emulate_media(color_scheme="dark", media="print")
    try:
        yield
    finally:
        page.emulate_media(color_scheme="light", media="screen")
        if size is not None:
            page.set_viewport_size(size)


def check_on_paper(page: Page) -> None:
    """Hold a page to what paper can show: light, whole, everything open, nothing to be pressed."""
    with on_paper(page):
        assert ground(page) > 200
        assert clipped(page) == []
        hidden = page.evaluate(
            "[...document.querySelectorAll('.scroll')].filter((e) => e.checkVisibility() && "
            "e.scrollWidth > e.clientWidth + 1).map((e) => e.getAttribute('aria-label'))"
        )
        assert hidden == [], "what scrolls on a screen is cut off on paper"
        for pressed in (".toggle", ".skip"):
            assert not any(one.is_visible() for one in page.locator(pressed).all())
    closed = "document.querySelectorAll('details:not([open])').length"
    before = page.evaluate(closed)
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.stillClosed = {closed} }})")
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.evaluate("window.stillClosed") == 0 and page.evaluate(closed) == before
