"""Reading files that may be hostile: bounded, inside their directory, one clear line on failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxllama.errors import CheckpointError

_MEGABYTE = 1 << 20
CONFIG_LIMIT = 4 * _MEGABYTE
INDEX_LIMIT = 64 * _MEGABYTE
TOKENIZER_LIMIT = 256 * _MEGABYTE


def inside(directory: Path, name: str) -> Path:
    """Return the file `name` of a directory, refusing any that lies outside it.

    A symbolic link may only lead elsewhere in the directory - or, as in the Hugging Face cache,
    from `snapshots/REVISION` to the `blobs` of the same repository.

    Raises:
        CheckpointError: the name is absolute, climbs out, or links out.
    """
    root = directory.resolve()
    path = root / name
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a zero byte
        raise CheckpointError(f"{directory}: {name!r} is no usable file name: {error}") from error
    climbs = Path(name).is_absolute() or ".." in Path(name).parts
    if resolved.is_relative_to(root) and not climbs:
        return path
    blobs = root.parent.parent / "blobs"
    cached = root.parent.name == "snapshots" and path.parent == root and not climbs
    if cached and resolved.parent == blobs:
        return path
    raise CheckpointError(
        f"{directory}: {name!r} lies outside the directory (at {resolved}); a checkpoint's files "
        "belong in its directory"
    )


def size(path: Path) -> int:
    """Return a file's length in bytes.

    Raises:
        CheckpointError: it is not there, not a file, or not permitted.
    """
    try:
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            raise CheckpointError(f"{path}: {what}")
        return path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """Return a small file's contents.

    Raises:
        CheckpointError: it cannot be read, or is longer than `limit` bytes.
    """
    length = size(path)
    if length > limit:
        raise CheckpointError(f"{path}: {length} bytes, at most {limit} are accepted")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} occurs twice")
    return result


def parse_object(text: bytes, source: str) -> dict[str, Any]:
    """Parse a JSON object whose keys are unique.

    Raises:
        CheckpointError: not JSON, nested too deep, a key twice, or not an object.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except RecursionError:
        raise CheckpointError(f"{source}: JSON nested too deep") from None
    except ValueError as error:
        raise CheckpointError(f"{source}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: holds a JSON {type(value).__name__}, expected an object")
    return value


def read_json(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes; raises `CheckpointError` like its parts."""
    return parse_object(read_bytes(path, limit), str(path))
