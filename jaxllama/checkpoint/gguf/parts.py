"""GGUF models in several files, `NAME-00001-of-00003.gguf` and on, as llama.cpp splits them.

Every part is a GGUF file with a directory of its own tensors. The first has the model's metadata,
and may have no tensors; each says which part it is of how many, and how many tensors all have.

Source: `tools/gguf-split` and `src/llama-model-loader.cpp` in llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxllama import files
from jaxllama.checkpoint.gguf.file import GGUFFile, read_head
from jaxllama.errors import CheckpointError, join_problems

_NO, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_ALIGNMENT = "general.alignment"
_NAME = re.compile(r"(?P<model>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_TO_DO = "fetch all parts anew, of one release, or split the model anew"


def part_name(model: str, number: int, count: int) -> str:
    """Return the name of a part; numbers begin at 1."""
    return f"{model}-{number:05}-of-{count:05}.gguf"


def is_part(name: str) -> bool:
    """Whether a file is called like a part."""
    return _NAME.fullmatch(name) is not None


def part_metadata(number: int, count: int, tensors: int) -> dict[str, Any]:
    """Return the keys of a part, in the widths that llama.cpp asks for; numbers begin at 1."""
    return {_NO: np.uint16(number - 1), _COUNT: np.uint16(count), _TENSORS: np.int32(tensors)}


def models_in(directory: Path) -> list[Path]:
    """Return a file of each GGUF model of a directory: of a split one its first part there."""
    found: dict[Any, Path] = {}
    for file in sorted(directory.glob("*.gguf")):
        named = _NAME.fullmatch(file.name)
        found.setdefault((named["model"], named["count"]) if named else file.name, file)
    return list(found.values())


def read_parts(path: Path) -> GGUFFile:
    """Read a file's metadata and tensor directory, and those of the parts that belong to it.

    Args:
        path: a GGUF file, or any part of a split one.

    Raises:
        CheckpointError: see `read_head`; or parts are missing or too many, or do not fit together.
    """
    head = read_head(path)
    count, named = head.metadata.get(_COUNT, 0), _NAME.fullmatch(path.name)
    if not isinstance(count, int):
        raise CheckpointError(f"{path}: {_COUNT} is {count!r}, expected a number of parts")
    if count <= 1 and (named is None or int(named["count"]) <= 1):
        return head
    if named is None or int(named["count"]) != count:
        says = (
            "no part" if named is None else f"part {int(named['number'])} of {int(named['count'])}"
        )
        raise CheckpointError(
            f"{path}: by its name it is {says}, by {_COUNT} one of {count}; a part is called "
            f"{part_name('NAME', 1, max(count, 1))} and on"
        )
    parts = [read_head(file) for file in _files(path, named["model"], count)]
    if problems := _misfits(parts):
        problems[-1] += f"; {_TO_DO}"
        raise CheckpointError(
            join_problems(f"{path}: its {count} parts do not fit together", problems)
        )
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    heads = {file: nbytes for part in parts for file, nbytes in part.heads.items()}
    return GGUFFile(path, parts[0].metadata, tensors, heads)


def _files(path: Path, model: str, count: int) -> list[Path]:
    """Return the files of all parts, in order."""
    names = [part_name(model, number, count) for number in range(1, count + 1)]
    of_these = {
        file.name
        for file in path.parent.glob("*.gguf")
        if (named := _NAME.fullmatch(file.name))
        and (named["model"], int(named["count"])) == (model, count)
    }
    if missing := [name for name in names if name not in of_these]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(
            f"{path}: {len(missing)} of the model's {count} parts are missing beside it: "
            f"{', '.join(missing[:3])}{more}; fetch them"
        )
    if extra := sorted(of_these - set(names)):
        raise CheckpointError(
            f"{path}: {extra[0]} lies beside it, and there is no such part of {count}; {_TO_DO}"
        )
    return [files.inside(path.parent, name) for name in names]


def _misfits(parts: list[GGUFFile]) -> list[str]:
    """Return what tells that files are not the parts of one model, in their order."""
    first, problems = parts[0], []
    place: dict[str, str] = {}
    for number, part in enumerate(parts):
        file = part.path.name
        stated: Mapping[str, Any] = part.metadata
        for key, expected in ((_NO, number), (_COUNT, len(parts))):
            if stated.get(key) != expected:
                problems.append(f"{file}: {key} is {stated.get(key)!r}, expected {expected}")
        problems += [
            f"{file}: {key} is not as in {first.path.name}, so that they are of two models"
            for key in sorted(stated)
            if key not in (_NO, _ALIGNMENT) and not _same(stated[key], first.metadata.get(key))
        ]
        for name in part.tensors:
            if name in place:
                problems.append(f"{name} is in {place[name]} and in {file}")
            place[name] = file
    total = first.metadata.get(_TENSORS)
    if not problems and total != len(place):
        problems.append(f"{_TENSORS} is {total!r}, but the parts have {len(place)} tensors")
    return problems


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(np.array_equal(one, other))
