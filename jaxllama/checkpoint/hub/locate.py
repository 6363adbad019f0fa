"""Where what a user names lies on this machine: a path, else a model of the Hub."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from jaxllama.checkpoint.hub import download
from jaxllama.checkpoint.hub.cache import cache_directory, find_snapshot
from jaxllama.checkpoint.hub.name import HubName, parse_name
from jaxllama.errors import CheckpointError


def locate(
    source: str | os.PathLike[str], *, known: str = "", quiet: bool = False
) -> tuple[Path, list[str]]:
    """Return the path of what is named, and notes on the choice.

    What is there under a path's name wins; then what `huggingface_hub` has in its cache; then what
    it fetches.

    Args:
        source: a path, or as a text also `ORGANISATION/MODEL[@REVISION]`.
        known: other names that could be given, for a message.
        quiet: whether a download shows no progress.

    Raises:
        CheckpointError: nothing is there, and it cannot be fetched.
    """
    path, name = Path(source), parse_name(source) if isinstance(source, str) else None
    try:
        exists = path.exists()
    except OSError as error:  # not permitted, or too long for a name
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if exists:
        return path, [] if name is None else _shadowed(name)
    if name is None:
        raise CheckpointError(
            f"{path}: does not exist; give a directory, a file, a model's name on the Hub "
            f"(ORGANISATION/MODEL){known}"
        )
    return _on_hub(name, quiet=quiet)


def _shadowed(name: HubName) -> list[str]:
    """Return a note where a path here has the name of a model that the cache holds."""
    with suppress(CheckpointError):
        cached = find_snapshot(name)
        if cached is not None and cached.usable:
            return [
                f"{name} is a path here, which is read; the model of that name in the Hub's cache "
                f"is {cached.path}"
            ]
    return []


def _on_hub(name: HubName, *, quiet: bool) -> tuple[Path, list[str]]:
    cached = find_snapshot(name)
    if cached is not None and cached.usable and not cached.missing:
        return cached.path, []
    lacks = "" if cached is None else f", which lacks {_some(cached.missing)}"
    try:
        if reason := download.why_not():
            what = "the model is not whole in" if cached else "no model of that name is in"
            raise CheckpointError(
                f"{name}: is no file or directory here, and {what} the Hub's cache "
                f"({cache_directory()}){lacks}; `{name.fetch_command()}` fetches it where there is "
                f"a network; {reason}"
            )
        download.download(name, quiet=quiet)
    except CheckpointError as error:
        if cached is None or not cached.usable:
            raise
        return cached.path, [
            f"what the Hub's cache has of {name} is read, which lacks {_some(cached.missing)}: "
            f"{error}"
        ]
    found = find_snapshot(name)
    if found is None or not found.usable:
        lacks = _some(found.missing) if found and found.missing else "its configuration or weights"
        raise CheckpointError(f"{name}: was fetched, but lacks {lacks}; it cannot be read")
    return found.path, []


def _some(names: tuple[str, ...]) -> str:
    if not names:
        return "weights"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
