"""Traces that say, or hold, what no capture writes: one error each, and no figure."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import scripted_inputs

from jaxllama.errors import InputError
from jaxllama.files import limits
from parity.trace import TraceInfo, TraceWriter, read_capture, read_trace


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    inputs, path = scripted_inputs(), tmp_path / "f64-scripted-free-one.safetensors"
    taps = {"embed": np.ones((2, 5, 7))}, {"layers.0.q_proj": np.ones((2, 5, 4, 6))}
    with TraceWriter(path, inputs) as writer:
        for stage in (*taps, {"logits": np.ones((2, 5, 13))}):
            writer.stage(stage)
        writer.close(
            TraceInfo(
                subject="one",
                role="subject",
                dtype="f64",
                internal_dtype="f64",
                absent=(),
                scenario="scripted",
                mode="free",
                chunks=None,
                layers=1,
                inputs_sha256=inputs.digest(),
                checkpoint={"label": "a", "config": {}, "sha256": "0" * 64},
                environment={},
            )
        )
    return path


def changed(path: Path, change: Any) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    document = json.loads(header["__metadata__"]["parity_trace"])
    change(header, document)
    header["__metadata__"]["parity_trace"] = json.dumps(document)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_what_a_capture_writes_is_read(trace: Path) -> None:
    changed(trace, lambda header, document: None)
    assert [list(stage) for stage in read_trace(trace)] == [
        ["embed"],
        ["layers.0.q_proj"],
        ["logits"],
    ]


def info(**fields: Any) -> Any:
    return lambda header, document: document["info"].update(fields)


SAID: dict[str, tuple[Any, str]] = {
    "dtype": (info(dtype="x"), "dtype 'x', expected one of f64"),
    "internal": (info(internal_dtype="1e9"), "internal_dtype '1e9', expected one of f64"),
    "mode": (info(mode="\x1b[2J"), "expected one of free, decode"),
    "role": (info(role=""), "expected one of subject, variant"),
    "layers": (info(layers=2**40), "holds other tensors|expected counts"),
    "negative": (info(window=-1), "expected counts"),
    "chunks": (info(chunks=[-5]), "expected counts"),
    "label": (info(checkpoint={"config": {}, "sha256": "0"}), "checkpoint's label is None"),
    "sha256": (info(checkpoint={"label": "", "config": {}, "sha256": 3}), "sha256 is 3"),
    "config": (info(checkpoint={"label": "", "config": [], "sha256": ""}), "config is"),
    "tokens": (lambda h, d: h["inputs/tokens"].update(shape=[10]), r"input tokens is int32"),
    "mask": (lambda h, d: h["inputs/mask"].update(shape=[50]), "input mask is bool"),
    "floats": (lambda h, d: h["inputs/tokens"].update(dtype="F32"), "input tokens is float32"),
    "name": (lambda h, d: d["stages"][0].append(["x" * 999, 1]), "name of 999 characters"),
    "half": (lambda h, d: d["stages"][0].append(["\ud800", 1]), "half a character"),
    "deep": (lambda h, d: d.update(x=json.loads("[" * 99 + "]" * 99)), "nested too deep"),
}


@pytest.mark.parametrize("kind", SAID)
def test_what_no_capture_writes_is_refused(kind: str, trace: Path) -> None:
    change, said = SAID[kind]
    changed(trace, change)
    with pytest.raises(InputError, match=said):
        read_trace(trace)


@pytest.mark.parametrize("shape", [[70], [5, 2, 7, 1], [1, 70], [2, 35]])
def test_a_tap_of_other_axes_is_refused(shape: list[int], trace: Path) -> None:
    """Which its checksum, over bytes alone, does not tell."""
    changed(trace, lambda header, document: header["0/embed"].update(shape=shape))
    with pytest.raises(InputError, match=r"embed has shape .* expected BTD"):
        next(iter(read_trace(trace)))


def test_a_pipe_and_a_crowd_are_refused(trace: Path) -> None:
    os.mkfifo(trace.with_name("pipe.safetensors"))
    with pytest.raises(InputError, match=r"pipe\.safetensors: is not a regular file"):
        read_capture(trace.parent)
    for number in range(limits.TRACES):
        trace.with_name(f"{number}.safetensors").touch()
    with pytest.raises(InputError, match="502 traces, at most 500 are accepted"):
        read_capture(trace.parent)
