"""The result as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from jaxllama.files.output import write_text
from parity.result import Result


def write(result: Result, path: Path) -> None:
    """Write a result's document to `path`."""
    write_text(path, json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n")
