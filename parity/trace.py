"""Traces: what one run of one subject showed, in a safetensors file with all that judging it needs.

NumPy and safetensors alone: a trace made in one environment is judged in another.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxllama import files
from jaxllama.errors import CheckpointError, InputError
from jaxllama.files import limits
from parity.inputs import Inputs
from parity.records import read_record, read_value
from parity.taps import AXES, split_name

# 1: first published.
FORMAT = 1
SUFFIX = ".safetensors"
_KEY = "parity_trace"
_DTYPES: dict[np.dtype, str] = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.bool_): "BOOL",
}
# Fields of a configuration that say the size of an axis.
_SIZES = {
    "N": "num_attention_heads",
    "K": "num_key_value_heads",
    "H": "head_dim",
    "D": "hidden_size",
    "F": "intermediate_size",
    "V": "vocab_size",
}
# Between a scenario and why its subject does not take it, in the notes of those captured with it.
NOT_CAPTURED = " is not captured: "
_INPUTS = ("tokens", "positions", "valid", "mask", "segments")


@dataclass(frozen=True)
class TraceInfo:
    """What a trace says of itself.

    Attributes:
        subject: name of the implementation.
        role: `subject`, or `variant`: an honest run whose error is the noise.
        dtype, internal_dtype, absent: as in `parity.subjects.base.Subject`.
        scenario: name of the inputs.
        mode: `free` or `decode`.
        chunks: columns of each call of a decode run; None without a cache.
        layers: L.
        inputs_sha256: `Inputs.digest()`.
        checkpoint: of the weights: `label`, `config`, `sha256` over all tensors.
        environment: see `parity.runner.environment.describe`; states the precision of matmuls.
        seconds: that the run took, taps included.
        notes: remarks of the scenario, and of those beside it that were left out.
        together: the runs captured with it, itself one of them; earlier traces do not say.
    """

    subject: str
    role: str
    dtype: str
    internal_dtype: str
    absent: tuple[str, ...]
    scenario: str
    mode: str
    chunks: tuple[int, ...] | None
    layers: int
    inputs_sha256: str
    checkpoint: Mapping[str, Any]
    environment: Mapping[str, Any]
    window: int | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    together: tuple[str, ...] = ()

    @property
    def run(self) -> tuple[str, str, str]:
        """Which run it is of: dtype, scenario, mode."""
        return self.dtype, self.scenario, self.mode


@dataclass
class Trace:
    """An ordered record of taps, stage by stage, lying in a file.

    Attributes:
        path: the file.
        info: what it says of itself.
        inputs: the scenario it was run on.
        stages: for each stage, in order, the taps' names and the CRC-32 of their bytes.
        is_reference: whether its taps must have the shapes that its inputs and configuration give;
            of a subject other shapes are a finding.
    """

    path: Path
    info: TraceInfo
    inputs: Inputs
    stages: list[dict[str, int]] = field(default_factory=list)
    is_reference: bool = False

    def stage(self, index: int) -> dict[str, np.ndarray]:
        """Read the taps of one stage, in data-flow order.

        Raises:
            InputError: the file has changed or is damaged.
        """
        with _opened(self.path) as file:
            return {
                name: self._checked(name, file.get_tensor(f"{index}/{name}"), crc, index)
                for name, crc in self.stages[index].items()
            }

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self.stage(index) for index in range(len(self.stages)))

    def _checked(self, name: str, array: np.ndarray, crc: int, stage: int) -> np.ndarray:
        if zlib.crc32(_bytes(array)) != crc:
            raise InputError(
                f"{self.path}: {name} is not what was written (its checksum differs); the file is "
                "damaged, capture it again"
            )
        axes = AXES.get(split_name(name)[0])
        if (axes is not None and array.ndim != len(axes)) or not array.size:
            raise InputError(
                f"{self.path}: {name} has shape {array.shape}, expected {axes}; capture it again"
            )
        sizes = self._sizes(stage) if self.is_reference and axes is not None else {}
        wanted = {
            axis: sizes.get(axis, n) for axis, n in zip(axes or "", array.shape, strict=False)
        }
        if sizes and tuple(wanted.values()) != array.shape:
            said = ", ".join(f"{axis} {n}" for axis, n in wanted.items())
            raise InputError(
                f"{self.path}: {name} has shape {array.shape}, expected {said}; capture it again"
            )
        return array

    def _sizes(self, stage: int) -> dict[str, int]:
        """Return the sizes of axes in a stage, as far as inputs and configuration say them."""
        rows, columns = self.inputs.tokens.shape
        calls = self.info.chunks or (columns,)
        config = self.info.checkpoint["config"]
        stated = {axis: config.get(name) for axis, name in _SIZES.items()}
        known = {axis: size for axis, size in stated.items() if type(size) is int}
        return {"B": rows, "T": calls[stage // (self.info.layers + 2)], **known}


class TraceWriter:
    """Writes a trace stage by stage, so that only one stage is in memory.

    The header of a safetensors file says where everything lies and comes first, while the sizes
    are known last: tensors are spooled beside the file and copied behind their header.

    It is a context manager: left without `close`, it leaves nothing.

    Args:
        path: of the file to make; its directory exists.
        inputs: the scenario, stored with the trace.
    """

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def __init__(self, path: Path, inputs: Inputs) -> None:
        self._path = path
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
        self._header: dict[str, Any] = {}
        self._end = 0
        self._stages: list[dict[str, int]] = []
        self._inputs = inputs
        for name in _INPUTS:
            if (array := getattr(inputs, name)) is not None:
                self._add(f"inputs/{name}", array)

    def stage(self, taps: Mapping[str, np.ndarray]) -> None:
        """Append the taps of the next stage."""
        number = len(self._stages)
        self._stages.append(
            {name: self._add(f"{number}/{name}", array) for name, array in taps.items()}
        )

    def _add(self, key: str, array: np.ndarray) -> int:
        dtype = _DTYPES.get(array.dtype)
        if dtype is None:
            raise InputError(f"{key}: dtype {array.dtype} has no place in a trace")
        raw = _bytes(array)
        self._spool.write(raw)
        offsets = [self._end, self._end + len(raw)]
        self._header[key] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        self._end = offsets[1]
        return zlib.crc32(raw)

    def close(self, info: TraceInfo) -> None:
        """Write the file."""
        document = {
            "format": FORMAT,
            "info": asdict(info),
            "stages": [list(stage.items()) for stage in self._stages],
            "axes": {
                name: AXES[split_name(name)[0]]
                for stage in self._stages
                for name in stage
                if split_name(name)[0] in AXES
            },
        }
        self._header["__metadata__"] = {_KEY: json.dumps(document, default=str)}
        text = json.dumps(self._header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._spool.seek(0)
        with self._path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(self._spool, file, 1 << 22)


def read_trace(path: Path) -> Trace:
    """Read what a trace says of itself and its inputs; taps are read when they are asked for.

    Raises:
        InputError: not a trace, cut short, damaged, or of a later format.
    """
    with _opened(path) as file:
        text = (file.metadata() or {}).get(_KEY)
        if text is None:
            raise InputError(f"{path}: not a trace of parity capture")
        held = set(file.keys())
        try:
            document = files.parse_object(text.encode("utf-8", "surrogatepass"), "description")
            if document["format"] != FORMAT:
                raise InputError(
                    f"{path}: trace of format {document['format']}, this version reads {FORMAT}"
                )
            info: TraceInfo = read_record(TraceInfo, document["info"], f"{path}: info")
            pairs = list[list[tuple[str, int]]]
            stages = [dict(one) for one in read_value(pairs, document["stages"], f"{path}: stages")]
        except InputError:
            raise
        except CheckpointError as error:
            raise InputError(f"{path}: {error}; capture it again") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: its description cannot be read: {error!r}") from error
        arrays = {n: file.get_tensor(f"inputs/{n}") for n in _INPUTS if f"inputs/{n}" in held}
    try:
        for stage in stages:
            files.check_names(stage, str(path))
    except CheckpointError as error:
        raise InputError(f"{error}; capture it again") from error
    calls = len(info.chunks or (0,))
    wanted = {f"{i}/{name}" for i, stage in enumerate(stages) for name in stage}
    whole = len(stages) == calls * (info.layers + 2) and wanted <= held
    if not whole or not set(_INPUTS[:4]) <= set(arrays):
        raise InputError(f"{path}: holds other tensors than it describes; capture it again")
    if problem := _strange(info) or _misshapen(arrays):
        raise InputError(f"{path}: {problem}; capture it again")
    inputs = Inputs(name=info.scenario, window=info.window, notes=info.notes, **arrays)
    if inputs.digest() != info.inputs_sha256:
        raise InputError(f"{path}: its inputs are not those it was made from; capture it again")
    return Trace(path, info, inputs, stages)


def _strange(info: TraceInfo) -> str:
    """Say what of a description no capture writes; empty where there is nothing."""
    lanes = ("f64", "f32", "f16", "bf16")
    known = {"dtype": lanes, "internal_dtype": lanes, "mode": ("free", "decode")}
    known["role"] = ("subject", "variant")
    for name, values in known.items():
        if getattr(info, name) not in values:
            return f"{name} {getattr(info, name)!r:.40}, expected one of {', '.join(values)}"
    kinds = {"label": str, "sha256": str, "config": Mapping}
    for name, kind in kinds.items():
        if not isinstance(info.checkpoint.get(name), kind):
            return f"its checkpoint's {name} is {info.checkpoint.get(name)!r:.40}"
    counts = (info.layers, *(info.chunks or ()), *([] if info.window is None else [info.window]))
    if not all(0 <= count < 2**31 for count in counts):
        return f"layers, chunks or window {counts!s:.60}, expected counts"
    return ""


def _misshapen(arrays: Mapping[str, np.ndarray]) -> str:
    """Say which of the inputs is of another shape or dtype than it must be; empty if none."""
    rows = arrays["tokens"].shape
    for name, array in arrays.items():
        shape = (*rows, rows[-1]) if name == "mask" and rows else rows
        kind = "b" if name in ("valid", "mask") else "i"
        if array.shape != shape or len(rows) != 2 or array.dtype.kind != kind or not array.size:
            return f"its input {name} is {array.dtype} of shape {array.shape}"
    return ""


def read_capture(directory: str | Path) -> list[Trace]:
    """Read the traces of a directory, in the order of their names.

    Raises:
        InputError: no directory, no traces in it, or a file that is none.
    """
    directory = Path(directory)
    try:
        paths = sorted(directory.glob(f"*{SUFFIX}")) if directory.is_dir() else []
    except OSError as error:
        raise InputError(f"{directory}: cannot be read: {error.strerror}") from error
    if not paths:
        if directory.exists() and not directory.is_dir():
            raise InputError(
                f"{directory}: a file, expected a directory of traces, which parity capture makes;"
                " a saved result is judged again by parity recheck"
            )
        what = "no traces in it" if directory.is_dir() else "not a directory"
        raise InputError(f"{directory}: {what}; parity capture CHECKPOINT -o {directory} makes one")
    if len(paths) > limits.TRACES:
        raise InputError(
            f"{directory}: {len(paths)} traces, at most {limits.TRACES} are accepted; give the "
            "directory of one capture"
        )
    return [read_trace(path) for path in paths]


def weights_digest(weights: Iterator[tuple[str, np.ndarray]]) -> str:
    """Return a SHA-256 of weights by canonical name: names, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for name, array in weights:
        sha.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        sha.update(_bytes(array))
    return sha.hexdigest()


def file_name(subject: str, run: Sequence[str]) -> str:
    """Return the name of a trace's file."""
    safe = "".join(c if c.isalnum() or c in "_-" else "_" for c in subject)
    return "-".join([*run, safe]) + SUFFIX


def _bytes(array: np.ndarray) -> memoryview:
    flat = np.ascontiguousarray(array).reshape(-1)
    assert flat.nbytes == math.prod(array.shape) * array.dtype.itemsize
    return flat.view(np.uint8).data


class _opened:
    """Open a safetensors file; whatever is wrong with it is one `InputError`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        try:
            files.size(self._path)  # of a regular file: a pipe's reader would wait for ever
            self._file = safe_open(self._path, framework="numpy")
            return self._file.__enter__()
        except CheckpointError as error:
            raise InputError(f"{error}; capture it again") from error
        except (SafetensorError, OSError) as error:
            raise self._error(error) from error

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._file.__exit__(kind, error, traceback)
        if isinstance(error, SafetensorError | OSError):
            raise self._error(error) from error

    def _error(self, error: Exception) -> InputError:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        return InputError(f"{self._path}: no whole safetensors file ({said}); capture it again")
