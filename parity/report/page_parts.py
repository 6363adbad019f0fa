"""What any of our pages is made of: templates that escape all, and one script that may run."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from jaxllama.command_line.printable import spell_out
from parity.report.environment import environment_sentences

# A report is to be mailed and attached.
MOST_BYTES = 5_000_000
# Taken off beyond the excess when a page came out too long.
SPARE = 50_000


def spelled_out(value: Any) -> Any:
    """Spell out what would turn or hide the text of a page, wherever a file's text gets into it."""
    if isinstance(value, str):
        return type(value)(spell_out(value))  # markup stays markup
    if isinstance(value, dict):
        return {spelled_out(key): spelled_out(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spelled_out(item) for item in value]
    return value


def source(name: str, package: str = "parity.report") -> str:
    """Return a style or a script as it stands in a package's templates."""
    return files(package).joinpath("templates", name).read_text(encoding="utf-8")


def digest_of(script: str) -> str:
    """Return what a page's security policy names its one script by."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def templates(package: str) -> Environment:
    """Return a package's templates: they escape what they are given, and miss nothing silently.

    All of them may be put together from `parts.html`.
    """
    found = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("parity.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=spelled_out,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["in_words"] = environment_sentences
    return found
