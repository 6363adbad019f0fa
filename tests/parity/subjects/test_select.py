"""What `--subject` may name: factories of the checkpoint or the model, and published names."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from witnesses import small

import parity
from jaxllama.checkpoint import Checkpoint
from jaxllama.errors import InputError
from parity.subjects import FromCheckpoint
from parity.subjects.base import Subject
from parity.subjects.select import dtypes_of, resolve_subject
from parity.subjects.torch_reference.subject import TorchReference

CHECKPOINT = small()
SHORT: dict[str, Any] = {"dtypes": "f32", "scenarios": "causal", "length": 5, "modes": "free"}


def reading(checkpoint: Any, dtype: str) -> Subject:
    assert isinstance(checkpoint, Checkpoint)
    return TorchReference(checkpoint, dtype=dtype)


def annotated(held: Checkpoint, dtype: str) -> Subject:
    return reading(held, dtype)


def unnamed(held: Any, dtype: str) -> Subject:
    return reading(held, dtype)


@pytest.mark.parametrize("given", [reading, annotated, FromCheckpoint(unnamed)])
def test_a_factory_is_given_the_checkpoint_if_it_says_so(given: Any) -> None:
    assert isinstance(resolve_subject(given), FromCheckpoint)
    assert parity.run(CHECKPOINT, subject=given, **SHORT).verdict == "equal"


def test_any_other_is_given_the_model() -> None:
    assert resolve_subject(unnamed) is unnamed
    with pytest.raises(InputError, match="raised AssertionError"):
        parity.run(CHECKPOINT, subject=unnamed, **SHORT)


@pytest.mark.ill_typed
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda checkpoint: None, "with the checkpoint and 'f32', which it does not take"),
        (lambda checkpoint, dtype, more: None, "missing a required argument: 'more'"),
        (lambda checkpoint, dtype: None, "it gave NoneType"),
        (lambda: None, "with the loaded model and 'f32', which it does not take"),
        (FromCheckpoint(lambda: None), "with the checkpoint and 'f32', which it does not take"),  # type: ignore[arg-type,misc]
    ],
)
def test_wrong_signatures_are_refused_in_one_line(given: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parity.run(CHECKPOINT, subject=given, **SHORT)
    assert said in str(caught.value) and "\n" not in str(caught.value)


# What packages publish: here one that lies on the path as pip would have put it there.

ADAPTER = """
from parity.subjects.torch_reference.subject import TorchReference
REQUIREMENT = "nowhere-llama==1.2.3"
DTYPES = ("f32",)
def subject(checkpoint, dtype): return TorchReference(checkpoint, dtype=dtype)
def needing(checkpoint, dtype): import nowhere_llama
def failing(checkpoint, dtype): raise KeyError("layers")
"""
POINTS = """[parity.subjects]
planted = planted_adapter:subject
needing = planted_adapter:needing
failing = planted_adapter:failing
broken = planted_adapter:gone
leaving = planted_gone:subject
twice = planted_adapter:subject
"""
ANOTHER = """[parity.subjects]
twice = planted_adapter:another
"""


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "planted_adapter.py").write_text(ADAPTER)
    for name, points in {"planted": POINTS, "another": ANOTHER}.items():
        home = tmp_path / f"{name}-1.0.dist-info"
        home.mkdir()
        (home / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (home / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    importlib.invalidate_caches()


@pytest.mark.usefixtures("published")
def test_a_published_name_is_run_in_its_own_dtypes() -> None:
    assert dtypes_of(resolve_subject("planted"), None) == ("f32",)
    assert dtypes_of(resolve_subject("needing"), "bf16") == ("bf16",)
    result = parity.run(CHECKPOINT, subject="planted", scenarios="causal", length=5, modes="free")
    assert result.verdict == "equal" and result.lanes == ["f32"]
    assert "subject='planted'" in result.command


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("needing", "nowhere_llama is not installed here; `pip install nowhere-llama==1.2.3`"),
        ("failing", "subject failing: it raised KeyError: 'layers'"),
        ("broken", "entry point planted_adapter:gone of planted 1.0 does not load"),
        ("leaving", "entry point planted_gone:subject of planted 1.0 does not load"),
        ("twice", "published twice"),
        ("planed", "did you mean planted? "),
        ("jaxlama", "did you mean jaxllama? "),
        ("quite another", "expected jaxllama, xla"),
    ],
)
def test_a_name_that_is_not_to_be_had_takes_one_line(name: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parity.run(CHECKPOINT, subject=name, **SHORT)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("published")
def test_a_folder_does_not_stand_before_a_published_name(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (published / "planted").mkdir()
    monkeypatch.chdir(published)
    assert isinstance(resolve_subject("planted"), FromCheckpoint)
    with pytest.raises(InputError, match="no trace"):
        resolve_subject("./planted")


@pytest.mark.usefixtures("published")
def test_other_verbs_take_published_names(tmp_path: Path) -> None:
    files = parity.capture(
        CHECKPOINT, tmp_path / "taken", subject="planted", scenarios="causal", length=5
    )
    assert len(files) == 1
    text = tmp_path / "text.txt"
    text.write_text("A sentence or two, to look at attention with. " * 3)
    report = parity.check_health(CHECKPOINT, text=text, subject="planted", length=16)
    assert report.subject == "torch"
