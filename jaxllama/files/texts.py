"""Texts in files: one a file, or one a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxllama.errors import InputError, join_problems
from jaxllama.files import limits, reading

_LINES = ".jsonl"
Taken = TypeVar("Taken")


def read_texts(path: Path, most: int = limits.TEXT_BYTES) -> list[str]:
    """Return the texts of a file: of a .jsonl one a line, else one.

    A line is a JSON object with a `text`, or a JSON string. Empty lines are passed over.

    Args:
        path: of the file.
        most: bytes that are read.

    Raises:
        InputError: no such file, empty, not UTF-8, too long, or broken lines, all with numbers.
    """
    text = read_utf8(path, most)
    if path.suffix != _LINES:
        return [text]
    return [found for _, found in read_lines(path, text, _text_of)]


def read_utf8(path: Path, most: int = limits.TEXT_BYTES) -> str:
    """Return the text of a file.

    Args:
        path: of the file.
        most: bytes that are read.

    Raises:
        InputError: no such file, empty, not UTF-8, or too long.
    """
    length = reading.size(path)
    if length > most:
        raise InputError(f"{path}: {length} bytes, at most {most} are accepted")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = content.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        at = error.start + len(content) - len(error.object)
        line = content.count(b"\n", 0, at) + 1
        raise InputError(
            f"{path}: byte 0x{content[at]:02x} at offset {at}, line {line}, is not UTF-8; save the "
            "text as UTF-8"
        ) from None
    if not text.strip():
        raise InputError(f"{path}: holds no text; give a file with some")
    return text


def read_lines(path: Path, text: str, take: Callable[[Any], Taken]) -> list[tuple[int, Taken]]:
    """Return what each line of JSON holds, with the line's number; empty lines are passed over.

    Args:
        path: for messages.
        text: of the file.
        take: returns what is wanted of a line's value, or raises `InputError` saying what was
            expected in its place.

    Raises:
        InputError: lines that are no JSON or not what is expected, all with their numbers.
    """
    found, problems = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if "\\u" in line:  # what is spelled out may be half of a character
                json.dumps(value, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            problems.append(f"line {number} is no JSON: {error.msg} at column {error.colno}")
            continue
        except UnicodeEncodeError:
            problems.append(
                f"line {number} has a lone surrogate, which is no text; save it in UTF-8"
            )
            continue
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number} is no JSON: {error}")
            continue
        try:
            found.append((number, take(value)))
        except InputError as error:
            held = f"an object with {', '.join(value)}" if isinstance(value, dict) else repr(value)
            problems.append(f"line {number} is {held:.80}, expected {error}")
    if problems:
        raise InputError(join_problems(f"{path}", problems))
    return found


def _text_of(value: Any) -> str:
    found = value.get("text") if isinstance(value, Mapping) else value
    if not isinstance(found, str) or not found.strip():
        raise InputError("an object with a text")
    return found
