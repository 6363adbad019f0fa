"""The cache that `huggingface_hub` keeps, read without it: what is there works offline.

A model's folder has `refs/REVISION`, a commit's name; `snapshots/COMMIT`, links to the files of
that commit; `blobs`, the files; and `trees/COMMIT.json`, which files the commit has, where all of
it was asked for by one call.

Source: "Understand caching" in the documentation of `huggingface_hub`; `constants.py` of 2.4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jaxllama import files
from jaxllama.checkpoint.hf.read import CONFIG
from jaxllama.checkpoint.hf.weights import ADAPTER, INDEX, SINGLE
from jaxllama.checkpoint.hub.name import MAIN, HubName
from jaxllama.checkpoint.hub.needed import Needed, NothingToReadError, choose_files
from jaxllama.checkpoint.lora.contents import WEIGHTS as ADAPTER_WEIGHTS
from jaxllama.checkpoint.meta.directory import PARAMS
from jaxllama.checkpoint.orbax.arrays import described_files
from jaxllama.checkpoint.orbax.read import ARRAYS
from jaxllama.errors import CheckpointError
from jaxllama.files import limits

_COMMIT = re.compile(r"\w[\w.-]*", re.ASCII)
_WEIGHTS = (".safetensors", ".pth", ".gguf")
_ARRAYS = f"{ARRAYS}/"
_TRUE = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class Snapshot:
    """A commit in the cache.

    Attributes:
        path: directory to open.
        missing: files that are known to be its own, and are not there.
        usable: whether its configuration and its weights are there.
    """

    path: Path
    missing: tuple[str, ...]
    usable: bool


def cache_directory() -> Path:
    """Return where `huggingface_hub` keeps what it fetches, by the variables that it reads."""
    home = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    home = os.environ.get("HF_HOME", f"{home}/huggingface")
    hub = os.environ.get("HUGGINGFACE_HUB_CACHE", f"{_expanded(home)}/hub")
    return Path(_expanded(os.environ.get("HF_HUB_CACHE", hub)))


def is_offline() -> bool:
    """Return whether the environment forbids the network, by the variables of the library."""
    stated = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return stated.upper() in _TRUE


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))


def find_snapshot(name: HubName) -> Snapshot | None:
    """Return what the cache has of a model, None where it has nothing.

    Raises:
        CheckpointError: the cache cannot be read, or has several GGUF files of it.
    """
    folder = cache_directory() / name.folder
    try:
        commit = _commit(folder, name.revision or MAIN)
        root = folder / "snapshots" / commit if commit else None
        if root is None or not root.is_dir():
            return None
        # A link whose blob is gone is none.
        present = [str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()]
        tree = _tree(folder / "trees" / f"{commit}.json")
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror or error}") from error
    return _described(root, present, tree, name)


def _commit(folder: Path, revision: str) -> str | None:
    reference = folder / "refs" / revision
    if not reference.is_file():
        return revision if _COMMIT.fullmatch(revision) else None
    stated = reference.read_text(encoding="ascii", errors="replace").strip()
    return stated if _COMMIT.fullmatch(stated) else None


def _tree(file: Path) -> list[str] | None:
    """Return the paths of all files of a commit, None where they are not known."""
    try:
        found = files.read_json(file, limits.INDEX_BYTES).get("files")
    except CheckpointError:
        return None
    return list(found) if isinstance(found, Mapping) else None


def _described(
    root: Path, present: list[str], tree: list[str] | None, name: HubName
) -> Snapshot | None:
    here = _chosen(present, name)
    wanted = here
    if tree is not None:
        with suppress(CheckpointError):  # of GGUF files to choose from one may have been fetched
            wanted = _chosen(tree, name)
    if wanted is None:
        return Snapshot(root, (), usable=False)
    lacking = [] if here is None else _lacking(root, here)
    missing = dict.fromkeys([*lacking, *(file for file in wanted.files if file not in present)])
    kinds = set() if here is None else set(map(_kind, here.files)) - {""}
    usable = here is not None and not lacking and not kinds.intersection(map(_kind, missing))
    return Snapshot(root / (here or wanted).folder, tuple(missing), usable)


def _kind(file: str) -> str:
    """Return what tells a format's weights from all other files, empty of these."""
    if file.startswith(_ARRAYS):
        return _ARRAYS
    return Path(file).suffix if file.endswith(_WEIGHTS) else ""


def _chosen(names: list[str], repo: HubName) -> Needed | None:
    try:
        return choose_files(names, repo)
    except NothingToReadError:
        return None


def _lacking(root: Path, needed: Needed) -> list[str]:
    """Return what the files that are there show to be missing beside them."""
    kinds = set(map(_kind, needed.files))
    wanted: list[str] = []
    if ADAPTER in needed.files:
        wanted = [ADAPTER_WEIGHTS]
    elif ".pth" in kinds:
        wanted = [f"{needed.folder}/{PARAMS}" if needed.folder else PARAMS]
    elif ".safetensors" in kinds:
        wanted = [CONFIG] if SINGLE in needed.files else [CONFIG, INDEX, *_indexed(root)]
    elif _ARRAYS in kinds:
        wanted = [CONFIG, *(_ARRAYS + file for file in described_files(root / ARRAYS))]
    return [file for file in dict.fromkeys(wanted) if not (root / file).is_file()]


def _indexed(root: Path) -> list[str]:
    try:
        stated = files.read_json(root / INDEX, limits.INDEX_BYTES).get("weight_map")
    except CheckpointError:  # not there, which is said, or damaged, which opening it says
        return []
    return [str(file) for file in stated.values()] if isinstance(stated, dict) else []
