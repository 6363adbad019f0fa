"""Open a checkpoint of any format."""

from __future__ import annotations

import os
from pathlib import Path

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.from_model import from_model
from jaxllama.checkpoint.gguf.parts import models_in
from jaxllama.checkpoint.gguf.read import is_gguf, open_gguf
from jaxllama.checkpoint.hf.read import CONFIG, is_hf, open_hf
from jaxllama.checkpoint.hf.weights import ADAPTER, INDEX, SINGLE
from jaxllama.checkpoint.hub import locate
from jaxllama.checkpoint.meta.directory import PARAMS, is_meta, open_meta
from jaxllama.checkpoint.orbax.read import ARRAYS, is_orbax, open_orbax
from jaxllama.checkpoint.samples import open_smollm2, tiny
from jaxllama.errors import CheckpointError, InputError
from jaxllama.model import Llama

SAMPLES = {"tiny": tiny, "smollm2": open_smollm2}


def open_checkpoint(
    source: str | os.PathLike[str] | Checkpoint | Llama, *, quiet: bool = False
) -> Checkpoint:
    """Open a checkpoint, its format detected; weights are read only when asked for.

    Args:
        source: a directory or file; a model's name on the Hub, `ORGANISATION/MODEL[@REVISION]`,
            which is taken from its cache or fetched; `tiny` or `smollm2` (a directory of that
            name is `./tiny`); or a model, whose parameters are its tensors.
        quiet: whether a download shows no progress on stderr.

    Raises:
        CheckpointError: nothing is there, it cannot be fetched, is in no known format, or damaged.
        InputError: no path, checkpoint or model, an empty path, or a model without values.
        ConfigError: its configuration is contradictory or not understood.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Llama):
        return from_model(source)
    if source in SAMPLES:
        return SAMPLES[str(source)]()
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"checkpoint {source!r}: expected a path, a name, a model, or an open checkpoint"
        )
    if not str(source):
        raise InputError(
            f"checkpoint (nothing): give a directory, a file, or one of {', '.join(SAMPLES)}"
        )
    path, notes = locate(source, known=f", or one of {', '.join(SAMPLES)}", quiet=quiet)
    try:
        return _open(path).noted(*notes)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _open(path: Path) -> Checkpoint:
    if not path.is_dir():
        return _open_file(path)
    openers = {"orbax": open_orbax, "meta": open_meta, "hf": open_hf}
    weights = _weights_of(path)
    if len(weights) > 1:
        said = ", ".join(f"{what} ({form})" for form, what in weights.items())
        raise CheckpointError(
            f"{path}: holds the weights of several formats: {said}; move all but one elsewhere"
        )
    for form in weights:
        return openers[form](path).noted(*_side_files(path, form))
    gguf_files = models_in(path)
    if len(gguf_files) == 1:
        others = " and its config.json is not read" if is_hf(path) else ""
        found = open_gguf(files.inside(path, gguf_files[0].name))
        return found.noted(f"{gguf_files[0].name} is read{others}") if others else found
    if len(gguf_files) > 1:
        names = ", ".join(file.name for file in gguf_files[:3])
        raise CheckpointError(
            f"{path}: holds {len(gguf_files)} GGUF files ({names}{' ...' * (len(gguf_files) > 3)});"
            " give the path of one"
        )
    if is_hf(path) or (path / ADAPTER).exists():
        return open_hf(path)
    if is_meta(path):
        return open_meta(path)
    names = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise CheckpointError(f"{path}: in no known format; it holds {names}")


def _open_file(path: Path) -> Checkpoint:
    if is_gguf(path):
        return open_gguf(path)
    files.refuse_stranger(path, own=b"PK")  # of PyTorch's files
    raise CheckpointError(
        f"{path}: not a GGUF file; other formats are given as a directory, here {path.parent}"
    )


def _weights_of(path: Path) -> dict[str, str]:
    """Return what weights a directory holds, by format: these decide it, not the files beside."""
    found = {}
    if is_orbax(path):
        found["orbax"] = f"{ARRAYS}/"
    if meta_files := sorted(path.glob("consolidated.*.pth")):
        found["meta"] = meta_files[0].name
    if stored := [name for name in (SINGLE, INDEX) if (path / name).exists()]:
        found["hf"] = stored[0]
    return found


def _side_files(path: Path, form: str) -> list[str]:
    """Return a note on configurations in a directory that are of another format."""
    unread = {"hf": PARAMS, "orbax": PARAMS, "meta": CONFIG}[form]
    if not (path / unread).exists():
        return []
    return [f"{unread} is not read: the weights are of the format {form}, with its own"]
