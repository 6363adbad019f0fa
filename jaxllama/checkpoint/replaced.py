"""What may be replaced at a target: a checkpoint's or an adapter's own files, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxllama import files
from jaxllama.checkpoint.gguf.file import MAGIC
from jaxllama.checkpoint.hf.read import COMPANIONS, CONFIG
from jaxllama.checkpoint.hf.weights import ADAPTER, INDEX
from jaxllama.checkpoint.lora.contents import WEIGHTS as ADAPTER_WEIGHTS
from jaxllama.checkpoint.manifest import MANIFEST
from jaxllama.checkpoint.meta.directory import PARAMS
from jaxllama.checkpoint.orbax.read import ARRAYS
from jaxllama.errors import CheckpointError, InputError, summarise
from jaxllama.files import limits

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.(safetensors|gguf)|consolidated\.\d\d\.pth")
# What Orbax and TensorStore call the files of arrays, from ARRAYS on.
_OF_ARRAYS = re.compile(
    r"(_CHECKPOINT_METADATA|orbax\.checkpoint|commit_success\.txt|"
    r"state/(_METADATA|_sharding|(ocdbt\.process_\d+/)?(manifest\.ocdbt|d/[0-9a-f]{32})|"
    r"array_metadatas/process_\d+|[\w.]+/(zarr\.json|\.zarray|c|(c/)?\d+([./]\d+)*)))"
)
# Keys of which one at least is in the file of that name.
_KEYS = {
    CONFIG: {"model_type", "architectures", "hidden_size"},
    PARAMS: {"dim", "n_layers"},
    INDEX: {"weight_map"},
    MANIFEST: {"tensors"},
    ADAPTER: {"peft_type"},
}
_SHOWN = 5


def check_replaced(place: Path, *, adapter: bool = False) -> None:
    """Refuse to replace what is no checkpoint, or holds anything that we would not write.

    Args:
        place: that is to be replaced; nothing need be there.
        adapter: whether it is to be an adapter instead of a checkpoint.

    Raises:
        InputError: there is such a file, a link, or not all that makes a checkpoint.
        CheckpointError: it cannot be looked at.
    """
    what = "an adapter" if adapter else "a checkpoint"
    try:
        if not place.exists():
            return
        if place.is_dir():
            problems = list(_foreign(place, adapter=adapter))
            names = {entry.name for entry in place.iterdir()}
            if not problems and names and not _is_whole(names, adapter=adapter):
                problems = [f"it holds {', '.join(sorted(names)[:_SHOWN])} alone"]
        else:
            own = place.name.endswith(MANIFEST) and _has_keys(place, MANIFEST)
            own = own or (not adapter and _begins(place, MAGIC))
            problems = [] if own else ["it is a file of another kind"]
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be written: {error.strerror or error}") from error
    if problems:
        raise InputError(
            f"{place}: exists and is not {what} and nothing else, so it is not replaced "
            f"({'; '.join(summarise(problems, _SHOWN))}); remove it yourself or choose another "
            "target"
        )


def _is_whole(names: set[str], *, adapter: bool) -> bool:
    endings = {Path(name).suffix for name in names}
    if adapter:
        return ADAPTER in names
    return (
        (CONFIG in names and (ARRAYS in names or ".safetensors" in endings))
        or (PARAMS in names and ".pth" in endings)
        or ".gguf" in endings
    )


def _foreign(directory: Path, *, adapter: bool) -> Iterator[str]:
    """Yield a line on each entry that is not one of ours, or not what it is called."""
    for entry in sorted(directory.iterdir()):
        if entry.is_symlink():
            yield f"{entry.name} is a symbolic link"
        elif entry.is_dir():
            if adapter or entry.name != ARRAYS:
                yield f"{entry.name}/ is none of its directories"
            else:
                yield from _foreign_arrays(entry)
        elif not entry.is_file() or not _is_named_by_us(entry.name, adapter=adapter):
            yield f"{entry.name} is none of its files"
        elif not _is_what_it_is_called(entry):
            yield f"{entry.name} is not what it is called"


def _foreign_arrays(directory: Path) -> Iterator[str]:
    for entry in sorted(directory.rglob("*")):
        within = str(entry.relative_to(directory))
        own = entry.is_dir() or (entry.is_file() and _OF_ARRAYS.fullmatch(within))
        if entry.is_symlink() or not own:
            yield f"{directory.name}/{within} is none of its files"


def _is_named_by_us(name: str, *, adapter: bool) -> bool:
    if adapter:
        return name in (ADAPTER, ADAPTER_WEIGHTS, MANIFEST)
    return name in (*COMPANIONS, CONFIG, INDEX, PARAMS, MANIFEST) or bool(_WEIGHTS.fullmatch(name))


def _is_what_it_is_called(file: Path) -> bool:
    if file.name in _KEYS:
        return _has_keys(file, file.name)
    checks: dict[str, Callable[[], bool]] = {
        ".json": lambda: _begins(file, b"{"),
        ".gguf": lambda: _begins(file, MAGIC),
        ".pth": lambda: _begins(file, b"PK", b"\x80"),
        ".safetensors": lambda: _head(file)[8:9] == b"{",
    }
    return checks.get(file.suffix, lambda: True)()


def _has_keys(file: Path, name: str) -> bool:
    try:
        return not _KEYS[name].isdisjoint(files.read_json(file, limits.INDEX_BYTES))
    except CheckpointError:
        return False


def _begins(file: Path, *beginnings: bytes) -> bool:
    return _head(file).lstrip().startswith(beginnings)


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(64)
