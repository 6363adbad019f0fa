"""What PyTorch saves besides plain tensors: read where it means the same values, else named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import field_files as ff
import numpy as np
import pytest
import torch

from jaxllama.checkpoint import open_checkpoint, validate
from jaxllama.errors import CheckpointError

NAME = "norm.weight"
FILE = "consolidated.00.pth"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return ff.write(ff.sound(), tmp_path / "whole", "meta")


def values(place: Path) -> dict[str, np.ndarray]:
    opened = open_checkpoint(place)
    return {name: opened.read(name).copy() for name in opened.tensors}


def change(place: Path, made: Callable[[torch.Tensor], Any], **options: Any) -> None:
    state = torch.load(place / FILE, weights_only=True)
    torch.save({n: made(t) if n == NAME else t for n, t in state.items()}, place / FILE, **options)


SAME: dict[str, Callable[[torch.Tensor], Any]] = {
    "parameter": torch.nn.Parameter,
    "requires_grad": lambda t: t.clone().requires_grad_(),
    "negated": lambda t: torch._neg_view(-t),
    "negated parameter": lambda t: torch.nn.Parameter(torch._neg_view(-t)),
}


@pytest.mark.parametrize("kind", SAME)
def test_what_has_the_same_values_is_read(kind: str, place: Path) -> None:
    before = values(place)
    change(place, SAME[kind])
    after = values(place)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_state_of_parameters_is_read(place: Path) -> None:
    before = values(place)
    state = torch.load(place / FILE, weights_only=True)
    torch.save({name: torch.nn.Parameter(t) for name, t in state.items()}, place / FILE)
    assert all(np.array_equal(before[n], found) for n, found in values(place).items())


REFUSED: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "complex": (lambda t: torch.complex(t, t), "dtype complex64, expected a 16"),
    "conjugate": (lambda t: torch.complex(t, t).conj(), "dtype complex64, expected a 16"),
    "sparse": (lambda t: t.to_sparse(), "norm.weight is not a plain contiguous tensor"),
    "strided": (lambda t: torch.stack([t, t], 1)[:, 0], "not a plain contiguous tensor"),
    "expanded": (lambda t: t[:1].expand(2**40), "not a plain contiguous tensor"),
    "meta": (lambda t: t.to("meta"), "not a plain contiguous tensor|holds more than tensors"),
    "nested": (lambda t: torch.nested.nested_tensor([t, t]), "not a plain|holds more than"),
    "quantised": (
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        "not a plain contiguous tensor",
    ),
    "empty": (lambda t: torch.empty(0, 2**40), "expected dimensions in 1"),
    "scalar": (lambda t: torch.tensor(3.0), r"shape \(\), expected \(32,\)"),
    "eight bits": (lambda t: t.to(torch.float8_e4m3fn), "float8|quantised"),
    "a dict": (lambda t: {"weight": t}, "is a dict, expected a tensor"),
    "none": (lambda t: None, "is a NoneType, expected a tensor"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_others_is_named(kind: str, place: Path) -> None:
    made, said = REFUSED[kind]
    change(place, made)
    with pytest.raises(CheckpointError, match=said):
        validate(open_checkpoint(place))


@pytest.mark.parametrize("key", [3, None, (1, 2), b"x", "\ud800", "x" * 501])
def test_names_that_are_none(key: Any, place: Path) -> None:
    state = torch.load(place / FILE, weights_only=True)
    state[key] = state.pop(NAME)
    torch.save(state, place / FILE)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(place)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_legacy_file_is_called_so(protocol: int, place: Path) -> None:
    change(place, lambda t: t, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=r"a legacy file of PyTorch.*torch\.save\(torch\."):
        open_checkpoint(place)


def test_another_pickle_is_not(place: Path) -> None:
    (place / FILE).write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError, match="is a pickle, not in PyTorch's zip format"):
        open_checkpoint(place)
