"""Reading files that may be hostile: bounded, inside their directory, one clear line on failure."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from jaxllama.errors import CheckpointError
from jaxllama.files import limits


def inside(directory: Path, name: str) -> Path:
    """Return the file `name` of a directory, refusing any that lies outside it.

    A symbolic link may only lead elsewhere in the directory - or, as in the Hugging Face cache,
    from `snapshots/REVISION` and what is below it to the `blobs` of the same repository.

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
    snapshots = next((above for above in root.parents if above.name == "snapshots"), None)
    if snapshots and not climbs and resolved.parent == snapshots.parent / "blobs":
        return path
    raise CheckpointError(
        f"{directory}: {name!r} lies outside the directory (at {resolved}); a checkpoint's files "
        "belong in its directory"
    )


def check_new_name(path: Path, *longer: str) -> None:
    """Refuse a name that the system has no room for, before anything is written.

    Args:
        path: a file or directory that is to appear.
        longer: names of what lies beside it meanwhile, or from then on.

    Raises:
        CheckpointError: it is no name, or too long.
    """
    if "\0" in str(path):
        raise CheckpointError(f"{path}: is no usable name: it holds a zero byte")
    try:
        longest = max(len(os.fsencode(name)) for name in (path.name, *longer))
        room = os.pathconf(_above(path), "PC_NAME_MAX")
    except (ValueError, OSError) as error:  # half a character
        raise CheckpointError(f"{path}: is no usable name: {error}") from None
    if longest > room:
        raise CheckpointError(
            f"{path}: a name of {len(os.fsencode(path.name))} bytes is too long: with what is "
            f"written beside it, it needs {longest}, there is room for {room}; choose a shorter one"
        )


def _above(path: Path) -> Path:
    """Return the nearest directory above a path that there is."""
    return next((one for one in path.absolute().parents if one.is_dir()), Path("/"))


def size(path: Path) -> int:
    """Return a file's length in bytes.

    Raises:
        CheckpointError: it is not there, not a file, or not permitted.
    """
    try:
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            if path.is_dir():
                what = "is a directory, expected a file"
            raise CheckpointError(f"{path}: {what}")
        return path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


# How files begin that are often found in another's place, and what they are then.
_LFS = "a Git LFS pointer instead of the file itself; run `git lfs pull` where it was cloned"
_PICKLE = "a pickle, not in PyTorch's zip format; save it anew by a PyTorch of today"
_LEGACY = (
    "a legacy file of PyTorch, as before 1.6; save it anew by a PyTorch of today: "
    "torch.save(torch.load(OLD, weights_only=True), NEW)"
)
# The number that such a file begins with, pickled, by some protocols behind the length of a frame.
_MAGIC, _MAGIC_WITHIN = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", 32
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.github.com", _LFS),
    (b"version https://hawser.github.com", _LFS),  # as LFS was called first
    (b"../.git/annex/", "a git-annex pointer instead of the file itself; run `git annex get`"),
    (b"/annex/objects/", "a git-annex pointer instead of the file itself; run `git annex get`"),
    (b"\x1f\x8b\x08", "compressed by gzip; unpack it (gunzip, or tar xzf) first"),
    (b"BZh", "compressed by bzip2; unpack it first"),
    (b"\xfd7zXZ\0", "compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
    (b"\x04\x22\x4d\x18", "compressed by lz4; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it first"),
    (b"# xet version", "a Xet pointer instead of the file itself; fetch it again"),
    (b"\x93NUMPY", "an array of NumPy (.npy), no file of a model"),
    (b"%PDF-", "a PDF document; fetch the file itself"),
    (b"\x89PNG", "a picture; fetch the file itself"),
    (b"\xff\xd8\xff", "a picture; fetch the file itself"),
    (b"\xff\xfe", "text in UTF-16, no text in UTF-8; save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16, no text in UTF-8; save it as UTF-8"),
    (b"PK\x03\x04", "a zip archive (PyTorch's files are such); give it in its own format's place"),
    (b"GGUF", "a GGUF file; name it so, *.gguf, and give its path"),
    (b"\x89HDF", "an HDF5 file; convert it to safetensors first"),
    *((bytes([0x80, protocol]), _PICKLE) for protocol in range(2, 6)),
)
_TAR, _TAR_AT = b"ustar", 257
_WEB = (b"<!doctype", b"<!--", b"<html", b"<?xml", b"<head", b"<error")
# In words, perhaps after the status, or as an object in JSON.
_SAVED_ERROR = re.compile(
    rb"(?:(?:http/\S+ )?[1-5]\d\d\b[ :,-]*)?(?:"
    rb"(?:entry |repository |revision )?not found|found\. redirecting|moved permanently|"
    rb"(?:temporary|permanent) redirect|see other|bad gateway|service unavailable|"
    rb"too many requests|internal server error|invalid username or password|"
    rb"access (?:to model|to this|denied)|"
    rb"unauthorized|forbidden)"
    rb'|\{\s*"(?:error|message|detail)"\s*:'
)
_LOOKED_AT = 512


def stranger(head: bytes, *, own: bytes | tuple[bytes, ...] = b"") -> str:
    """Return what a file is that is not what it is called, to put into a message; empty if unknown.

    Args:
        head: its first bytes.
        own: how files of the expected kind begin.
    """
    if not head:
        return "empty; fetch it again"
    if own and head.startswith(own):
        return ""
    if head.startswith(b"\x80") and _MAGIC in head[:_MAGIC_WITHIN]:
        return _LEGACY
    for beginning, what in _BEGINNINGS:
        if head.startswith(beginning):
            return what
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_WEB):
        return "a web page, as a failed download leaves; fetch the file itself"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= limits.HEADER_BYTES:
        return "a safetensors file; name it so, *.safetensors"
    if head[_TAR_AT:].startswith(_TAR):
        return "a tar archive; unpack it (tar xf) first"
    if _SAVED_ERROR.match(text):
        said = head.strip().split(b"\n")[0][:60].decode("ascii", "replace")
        return f"a server's answer ({said!r}) instead of the file; fetch it again"
    return ""


def refuse_stranger(path: Path, *, own: bytes | tuple[bytes, ...] = b"") -> None:
    """Look at a file's first bytes, and refuse what is plainly of another kind.

    Args:
        path: the file.
        own: how files of the expected kind begin.

    Raises:
        CheckpointError: it cannot be read, is empty, or is a pointer, a web page or an archive.
    """
    size(path)
    try:
        with path.open("rb") as file:
            head = file.read(_LOOKED_AT)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if what := stranger(head, own=own):
        raise CheckpointError(f"{path}: is {what}")


def read_bytes(path: Path, limit: int) -> bytes:
    """Return a small file's contents.

    Raises:
        CheckpointError: it cannot be read, is longer than `limit` bytes, or is plainly no file of
            a checkpoint (`refuse_stranger`).
    """
    refuse_stranger(path)
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
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"key {twice!r:.80} occurs twice")
    return result


def parse_object(text: bytes, source: str, *, entries: int = limits.JSON_ENTRIES) -> dict[str, Any]:
    """Parse a JSON object whose keys are unique.

    Args:
        text: the JSON.
        source: what to call it in an error.
        entries: the most that are accepted.

    Raises:
        CheckpointError: not JSON, nested too deep, of too many entries, a key twice, a text with
            half a character, or not an object.
    """
    try:
        _check_entries(text, entries)
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
        if isinstance(value, dict | list):
            _check_depth(value)
        check_characters(text, value, source)
    except RecursionError:
        raise CheckpointError(
            f"{source}: JSON nested too deep, at most {limits.JSON_DEPTH} levels are accepted"
        ) from None
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{source}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: holds a JSON {type(value).__name__}, expected an object")
    return value


# A surrogate, which is whole only beside its other half.
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def check_characters(text: bytes, value: Any, source: str) -> None:
    """Refuse JSON with half a character in it, which no file and no terminal takes.

    Args:
        text: the JSON.
        value: what it was parsed into.
        source: what to call it in an error.

    Raises:
        CheckpointError: there is one.
    """
    if not _HALF.search(text):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        near = error.object[error.start :][:1]
        raise CheckpointError(f"{source}: {near!r} in it is half a character, no text") from None


def _check_entries(text: bytes, most: int) -> None:
    """Refuse too many entries before objects are made of them."""
    entries = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if entries > most:
        raise ValueError(f"{entries} entries, at most {most} are accepted")


def _check_depth(value: Any) -> None:
    """Refuse what is nested too deep, level by level: much that is done with it is recursive."""
    level = [value]
    for _ in range(limits.JSON_DEPTH):
        parts = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for part in parts for one in part if isinstance(one, dict | list)]
        if not level:
            return
    raise RecursionError


def check_names(names: Collection[Any], source: str) -> None:
    """Refuse too many names of tensors, and names that no tensor has, before any is looked at.

    Args:
        names: of all tensors of a file.
        source: what to call it in an error.

    Raises:
        CheckpointError: too many, too long, no text, or half a character.
    """
    if len(names) > limits.TENSORS:
        raise CheckpointError(
            f"{source}: {len(names)} tensors, at most {limits.TENSORS} are accepted"
        )
    for name in names:
        if not isinstance(name, str):
            raise CheckpointError(f"{source}: a tensor's name is {name!r:.80}, expected a text")
        if len(name) > limits.NAME_CHARACTERS:
            raise CheckpointError(
                f"{source}: tensor {name[:40]!r}... has a name of {len(name)} characters, at most "
                f"{limits.NAME_CHARACTERS} are accepted"
            )
        try:
            name.encode()
        except UnicodeEncodeError:
            raise CheckpointError(
                f"{source}: tensor {name!r:.80}: half a character in its name, no text"
            ) from None


def check_shape(shape: Sequence[int], source: str) -> None:
    """Refuse a shape that no tensor of a model has; raises `CheckpointError`.

    Args:
        shape: as stored.
        source: what to call the tensor in an error.
    """
    if any(not 1 <= n <= limits.DIMENSION for n in shape):
        said = str(tuple(shape))[:80]
        raise CheckpointError(
            f"{source}: shape {said}, expected dimensions in 1..{limits.DIMENSION}"
        )


def read_json(path: Path, limit: int = limits.CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes; raises `CheckpointError` like its parts."""
    return parse_object(read_bytes(path, limit), str(path))
