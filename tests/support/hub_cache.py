"""A cache folder of the Hub made by hand, as its documentation draws it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def files_below(directory: Path) -> dict[str, bytes]:
    """Return the contents of a directory's files, by their paths in it."""
    found = (file for file in directory.rglob("*") if file.is_file())
    return {file.relative_to(directory).as_posix(): file.read_bytes() for file in found}


def put_model(
    cache: Path,
    repo: str,
    files: Mapping[str, bytes],
    *,
    revision: str = "main",
    commit: str = COMMIT,
    tree: Iterable[str] | None = None,
) -> Path:
    """Put files of a commit into a cache, and return the commit's folder.

    Args:
        cache: the folder of all models.
        repo: `ORGANISATION/MODEL`.
        files: contents by path in the repository.
        revision: that stands for the commit.
        commit: its name.
        tree: paths of all files that the commit has, where the cache knows them.
    """
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot, blobs = folder / "snapshots" / commit, folder / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        blob = blobs / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    reference = folder / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    if tree is not None:
        (folder / "trees").mkdir(exist_ok=True)
        content = {"format_version": 1, "files": {name: {} for name in tree}}
        (folder / "trees" / f"{commit}.json").write_text(json.dumps(content))
    return snapshot
