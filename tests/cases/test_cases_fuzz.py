"""What tests/support/field_fuzz.py calls wrong; tests/jaxllama/checkpoint/test_fuzz.py runs it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import field_files as ff
import field_fuzz
import pytest

from jaxllama.checkpoint import open as opening


def spoilt(tmp_path: Path, mutation: field_fuzz.Mutation, seed: int = 0) -> str:
    whole = ff.write(ff.sound(), tmp_path / "whole")
    place = Path(shutil.copytree(whole, tmp_path / "spoilt"))
    mutation(place, "hf", random.Random(seed))
    return field_fuzz.outcome(field_fuzz.read(whole), place)


def other_theta(place: Path, form: str, rng: random.Random) -> None:
    ff.edit(place / ff.CONFIG, rope_theta=1e4)


def wrapped(place: Path, form: str, rng: random.Random) -> None:
    found = {f"module.{name}": values + 1 for name, values in ff.tensors(place).items()}
    ff.store(place, found)


def test_what_the_fuzz_would_call_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its negative controls: a silent pass, a note, a crash and a flood."""
    assert spoilt(tmp_path / "silent", other_theta) == "silent: ['rope_theta']"
    assert spoilt(tmp_path / "noted", wrapped) == "noted"
    with monkeypatch.context() as patch:
        patch.setattr(field_fuzz, "MOST_LINES", 0)
        assert spoilt(tmp_path / "flood", field_fuzz.directory).startswith("flood")
    with monkeypatch.context() as patch:
        patch.setattr(opening, "_weights_of", lambda path: {"hf": 1 / 0})
        with pytest.raises(ZeroDivisionError):
            field_fuzz.outcome(field_fuzz.Read({}, frozenset()), tmp_path / "silent" / "whole")
