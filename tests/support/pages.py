"""Pages opened in a real browser, without a window."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from browser import REMEDY, find_browser
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright

# On a machine busy with other work a browser can stand still for half a minute.
PATIENCE_MS = 180_000


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """Open the browser of this machine; fail, and say what to do, where there is none."""
    path = find_browser()
    if path is None:
        pytest.fail(REMEDY)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, timeout=PATIENCE_MS)
        yield opened
        opened.close()


class Visit:
    """One page opened in the browser, with all it asked the network for and complained about."""

    def __init__(self, browser: Browser, path: Path, **options: object) -> None:
        self.page: Page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}} | options)
        self.page.set_default_timeout(PATIENCE_MS)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())

    @property
    def fetched(self) -> list[str]:
        """Everything but the file itself and what it carries inside."""
        own = self.page.url
        return [url for url in self.requests if url != own and not url.startswith("data:")]

    def tile(self, kind: str, number: int = 0) -> Locator:
        shown = f".run:not([hidden]) [data-kind={kind}], .pass:not([hidden]) [data-kind={kind}]"
        return self.page.locator(shown).nth(number)

    def at(self, tile: Locator, x: int, y: int) -> tuple[float, float]:
        """Return the middle of a cell, on the screen."""
        tile.scroll_into_view_if_needed()
        box = tile.bounding_box()
        assert box is not None
        columns, rows = (int(tile.get_attribute(f"data-{name}") or 0) for name in "wh")
        return box["x"] + box["width"] * (x + 0.5) / columns, box["y"] + box["height"] * (
            y + 0.5
        ) / rows

    def hover(self, tile: Locator, x: int, y: int) -> str:
        """Return what the page says of a cell."""
        left, top = self.at(tile, x, y)
        self.page.mouse.move(left, top)
        tip = self.page.locator("#tip")
        for _ in range(500):  # the picture is read when the pointer first comes to it
            self.page.mouse.move(left + 0.5, top)
            self.page.mouse.move(left, top)
            if tip.is_visible() and tip.inner_text() not in ("", "…"):
                break
            self.page.wait_for_timeout(20)
        return tip.inner_text()

    def read_by_keys(self, tile: Locator, *keys: str) -> str:
        """Return what the page says when keys are pressed on an element, from its first cell on."""
        tile.focus()
        for key in keys:
            self.page.keyboard.press(key)
        tip = self.page.locator("#tip")
        for _ in range(500):
            if tip.inner_text() != "…":
                break
            self.page.wait_for_timeout(20)
        assert self.page.locator("#said").text_content() == tip.text_content(), "seen and heard"
        return tip.inner_text()

    def pixels(self, tile: Locator, x: int, y: int, side: int = 9) -> np.ndarray:
        """Return the colours around the middle of a cell [side, side, 3]."""
        left, top = self.at(tile, x, y)
        self.page.mouse.move(0, 0)
        clip = {"x": left - side / 2, "y": top - side / 2, "width": side, "height": side}
        return np.array(Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("RGB"))
