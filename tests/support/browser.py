"""The browser that tests of pages look for: Chromium or Chrome of this machine.

The standard library alone: `make browser` asks it before anything is installed.
"""

from __future__ import annotations

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
REMEDY = (
    "no browser was found, and the report is tested in a real one: run `make browser`, or set "
    f"BROWSER_PATH to a Chromium or Chrome (looked for: {', '.join(NAMES)})"
)


def find_browser() -> str | None:
    """Return the path of a browser: BROWSER_PATH, or the first of `NAMES` to be found."""
    chosen = os.environ.get("BROWSER_PATH")
    if chosen:
        return shutil.which(chosen)
    return next((path for name in NAMES if (path := shutil.which(name))), None)
