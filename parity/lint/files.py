"""Masks and facts about tokens from files: .npy, .npz, .pt, or short lists typed in place."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxllama.errors import InputError

SUFFIXES = (".npy", ".npz", ".pt", ".pth")


def looks_like_file(text: str) -> bool:
    """Whether an argument names an array file rather than being a spec."""
    return text.split(":")[0].endswith(SUFFIXES) or Path(text).exists()


def load_array(text: str, *, key: str = "mask") -> np.ndarray:
    """Return an array from `FILE`, `FILE:KEY`, or a JSON list.

    Args:
        text: .npy; .npz or .pt with one array, one called `key`, or a KEY after a colon; or
            [[1, 1, 0]].
        key: the name to look for in a file of several arrays.

    Raises:
        InputError: the file is missing, damaged, holds objects, or does not say which array.
    """
    if text.lstrip().startswith("["):
        return _from_list(text)
    name, _, chosen = text.partition(":")
    arrays = load_file(Path(name))
    if chosen and chosen not in arrays:
        raise InputError(f"{name}: no array {chosen!r}; it holds {', '.join(arrays) or 'none'}")
    if not chosen:
        chosen = next(iter(arrays)) if len(arrays) == 1 else key
    if chosen not in arrays:
        raise InputError(
            f"{name}: several arrays ({', '.join(arrays)}) and none called {key!r}; say which, as"
            f" {name}:{next(iter(arrays), 'NAME')}"
        )
    return arrays[chosen]


def load_file(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a file by name; a lone array is called "mask".

    Nothing a file says is executed: pickled objects are refused.

    Raises:
        InputError: the file cannot be read as what its name says.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a {', '.join(SUFFIXES)} file or a spec")
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path}: is no array file by its name; give a {', '.join(SUFFIXES)} file or a spec"
        )
    try:
        if path.suffix in (".pt", ".pth"):
            return _torch_arrays(path)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"mask": _known_dtype(loaded)}
        with loaded:
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
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if "pickle" in reason:  # NumPy takes whatever it does not know for one
            reason = "it holds Python objects, which are never loaded, or is not NumPy's at all"
        raise InputError(f"{path}: not a readable {path.suffix} array file: {reason}") from error


def _torch_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{path}: reading it needs PyTorch; install parity's extra") from error

    def array(tensor: Any) -> np.ndarray:
        tensor = tensor.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, torch.Tensor):
        return {"mask": array(loaded)}
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: holds a {type(loaded).__name__}, expected a tensor or a dict")
    found = {str(k): array(v) for k, v in loaded.items() if isinstance(v, torch.Tensor)}
    if not found:
        raise InputError(f"{path}: a dict without tensors; save the mask as a tensor")
    return found


def _known_dtype(array: np.ndarray) -> np.ndarray:
    """Give bfloat16 its name back: NumPy files keep its two bytes and forget what they are."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2 and array.dtype.names is None:
        return array.view(ml_dtypes.bfloat16)
    return array


def _from_list(text: str) -> np.ndarray:
    try:
        array = np.array(json.loads(text))
    except ValueError as error:
        raise InputError(f"{text[:60]}: not a list of lists of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{text[:60]}: rows of unequal length, or no numbers")
    return array
