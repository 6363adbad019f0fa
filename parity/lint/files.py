"""Masks and facts about tokens: from .npy, .npz, .pt files, standard input, or lists typed."""

from __future__ import annotations

import io
import json
import pickle
import re
import sys
import tokenize
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxllama.errors import CheckpointError, InputError
from jaxllama.files import limits, refuse_stranger, stranger

SUFFIXES = (".npy", ".npz", ".pt", ".pth")
STDIN = "-"
# How array files begin: NumPy's, zip archives (.npz and .pt), and PyTorch's of old.
OWN = (b"\x93NUMPY", b"PK", b"\x80")


def looks_like_file(text: str) -> bool:
    """Whether an argument names an array file rather than being a spec."""
    return is_stdin(text) or text.split(":")[0].endswith(SUFFIXES) or _is_there(text)


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False


def is_stdin(text: str) -> bool:
    """Whether an argument is `-` or `-:KEY`."""
    return text.split(":")[0] == STDIN


def load_array(text: str, *, key: str = "mask") -> np.ndarray:
    """Return an array from `FILE`, `FILE:KEY`, `-`, or a JSON list.

    Args:
        text: .npy; .npz or .pt with one array, one called `key`, or a KEY after a colon; `-` for
            any of them, or a list, on standard input; or [[1, 1, 0]].
        key: the name to look for in a file of several arrays.

    Raises:
        InputError: the file is missing, damaged, holds objects, or does not say which array.
    """
    if text.lstrip().startswith("["):
        return _from_list(text)
    if re.fullmatch(r"\d+(,\d+)*", text.replace(" ", "")):
        return _from_list(f"[{text}]")
    name, _, chosen = text.partition(":")
    return choose(name, load_file(Path(name)), chosen, key)


def choose(name: str, arrays: dict[str, np.ndarray], chosen: str, key: str) -> np.ndarray:
    """Return the array of a file that is asked for, its only one, or the one called `key`.

    Raises:
        InputError: there is none of that name, or several and none of them is asked for.
    """
    if chosen and chosen not in arrays:
        raise InputError(f"{name}: no array {chosen!r}; it holds {', '.join(arrays) or 'none'}")
    if not chosen:
        chosen = next(iter(arrays)) if len(arrays) == 1 else key
    if chosen not in arrays:
        raise InputError(
            f"{name}: several arrays ({', '.join(arrays)}) and none called {key!r}; say which, as"
            f" {'-- ' * (name == STDIN)}{name}:{next(iter(arrays), 'NAME')}"
        )
    return arrays[chosen]


def load_file(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a file by name; a lone array is called "mask".

    Nothing a file says is executed: pickled objects are refused.

    Raises:
        InputError: the file cannot be read as what its name says.
    """
    if str(path) == STDIN:
        return _stdin_arrays()
    if not _is_there(str(path)) or not path.is_file():
        raise InputError(f"{path}: no such file; give a {', '.join(SUFFIXES)} file or a spec")
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path}: is no array file by its name; give a {', '.join(SUFFIXES)} file or a spec"
        )
    try:
        refuse_stranger(path, own=OWN)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    with path.open("rb") as file:
        return _arrays(file, str(path), path.suffix)


def _stdin_arrays() -> dict[str, np.ndarray]:
    """Read standard input to its end, as what its first bytes say."""
    content = sys.stdin.buffer.read(limits.MASK_BYTES + 1)
    _check_length("standard input", len(content))
    if content.lstrip()[:1] == b"[":
        return {"mask": _from_list(content.decode("utf-8", "replace"))}
    suffix = next((s for start, s in _FIRST_BYTES.items() if content.startswith(start)), None)
    if suffix is None:
        said = stranger(content[:512]) or f"{content[:16]!r}, of no known kind"
        raise InputError(
            f"standard input: {said}: expected what an .npy, .npz or .pt file holds, or a list such"
            " as [[1, 1, 0]]"
        )
    if suffix == ".npz" and b"data.pkl" in content[:4096]:
        suffix = ".pt"
    return _arrays(io.BytesIO(content), "standard input", suffix)


_FIRST_BYTES = {b"\x93NUMPY": ".npy", b"PK": ".npz", b"\x80": ".pt"}


def _arrays(file: io.BufferedReader | io.BytesIO, name: str, suffix: str) -> dict[str, np.ndarray]:
    try:
        if suffix in (".pt", ".pth"):
            return _torch_arrays(file, name)
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"mask": _known_dtype(loaded)}
        with loaded:
            _check_length(name, sum(one.file_size for one in loaded.zip.infolist()))
            return {name: _known_dtype(loaded[name]) for name in loaded.files}
    except InputError:
        raise
    except (
        ValueError,
        EOFError,
        OSError,
        KeyError,
        RuntimeError,
        MemoryError,
        OverflowError,
        RecursionError,
        SyntaxError,
        tokenize.TokenError,  # NumPy's header is a literal of Python's
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if "pickle" in reason:  # NumPy takes whatever it does not know for one
            reason = "it holds Python objects, which are never loaded, or is not NumPy's at all"
        raise InputError(f"{name}: not a readable {suffix} array file: {reason}") from error


def _check_length(name: str, nbytes: int) -> None:
    """Refuse what unpacks to more than a mask has."""
    if nbytes > limits.MASK_BYTES:
        raise InputError(
            f"{name}: {nbytes} bytes once unpacked, at most {limits.MASK_BYTES} are accepted"
        )


def _torch_arrays(file: io.BufferedReader | io.BytesIO, name: str) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{name}: reading it needs PyTorch; install parity's extra") from error

    def array(tensor: Any) -> np.ndarray:
        # Whose file may be short: an expanded one repeats what it holds.
        _check_length(name, tensor.numel() * tensor.element_size())
        tensor = tensor.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    loaded = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(loaded, torch.Tensor):
        return {"mask": array(loaded)}
    if not isinstance(loaded, dict):
        raise InputError(f"{name}: holds a {type(loaded).__name__}, expected a tensor or a dict")
    found = {str(k): array(v) for k, v in loaded.items() if isinstance(v, torch.Tensor)}
    if not found:
        raise InputError(f"{name}: a dict without tensors; save the mask as a tensor")
    return found


def _known_dtype(array: np.ndarray) -> np.ndarray:
    """Give bfloat16 its name back: NumPy files keep its two bytes and forget what they are."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2 and array.dtype.names is None:
        return array.view(ml_dtypes.bfloat16)
    return array


def _from_list(text: str) -> np.ndarray:
    try:
        array = np.array(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{text[:60]}: not a list of lists of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{text[:60]}: rows of unequal length, or no numbers")
    return array
