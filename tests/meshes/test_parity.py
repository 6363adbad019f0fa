"""Every mesh of eight devices equals PyTorch, in every mode; and a fault of one device is found."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from planting import planted
from witnesses import small

import parity
from jaxllama.errors import InputError
from parity.result import Result

# Eight query heads of two kv heads: along `tensor` keys are cut, on half of it, or whole.
CHECKPOINT = small((8, 2), layers=2)
MESHES = [
    f"data={data},fsdp={fsdp},tensor={8 // data // fsdp}"
    for data, fsdp in itertools.product((1, 2, 4, 8), repeat=2)
    if data * fsdp <= 8
]
SHORT = {"scenarios": "right_padded", "length": 12, "dtypes": "f64"}


def run(mesh: str, modes: str, **options: object) -> Result:
    return parity.run(CHECKPOINT, mesh=mesh, modes=modes, **{**SHORT, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_is_equal(mesh: str) -> None:
    result = run(mesh, "free,isolated,decode,grad")
    assert result.verdict == "equal", result.first_divergence
    assert result.compared == result.expected == 107 and not result.absent
    assert result.subject == "jaxllama-sharded" and f"mesh={mesh!r}" in result.command


@pytest.mark.parametrize("mesh", MESHES)
def test_a_step_of_training_on_a_mesh_is_equal(mesh: str) -> None:
    result = run(mesh, "step")
    assert result.verdict == "equal" and result.rows, result.first_divergence


@pytest.mark.parametrize("mesh", ["tensor=8", "data=2,fsdp=2,tensor=2"])
def test_what_a_mesh_writes_is_equal(mesh: str) -> None:
    result = run(mesh, "generate")
    assert result.verdict == "equal" and result.rows


def test_layers_that_are_scanned_and_narrow_floats_are_equal() -> None:
    result = run("fsdp=2,tensor=4", "free,decode", subject="stacked", dtypes="f32,bf16")
    assert result.verdict == "equal", result.first_divergence


def test_a_head_count_that_the_mesh_does_not_divide_is_equal_and_noted() -> None:
    result = parity.run("tiny", mesh="tensor=4,data=2", modes="free", **SHORT)  # type: ignore[arg-type]
    assert result.verdict == "equal"
    assert any("attention is whole on every device" in note for note in result.notes)


@pytest.mark.parametrize(
    ("edit", "tap"),
    [
        # Each device reads the first device's part of its weights.
        (
            (
                "slice(*one.indices(length)[:2])",
                "slice(0, one.indices(length)[1] - one.indices(length)[0])",
            ),
            "embed",
        )
    ],
)
def test_a_device_with_anothers_weights_is_found(edit: tuple[str, str], tap: str) -> None:
    with planted("jaxllama.checkpoint.load.arrays", *edit):
        result = run("tensor=8", "free,isolated")
    assert result.verdict == "divergent" and result.first_divergence is not None
    assert result.first_divergence.row.tap == tap


def test_a_capture_of_a_mesh_is_one_trace(tmp_path: Path) -> None:
    options = {**SHORT, "modes": "free,decode"}
    parity.capture(CHECKPOINT, tmp_path / "mesh", mesh="data=2,tensor=4", **options)  # type: ignore[arg-type]
    parity.capture(CHECKPOINT, tmp_path / "one", **options)  # type: ignore[arg-type]
    result = parity.compare(tmp_path / "mesh", tmp_path / "one")
    assert result.verdict == "equal" and result.compared == result.expected
    # Sums in another order: not our own run once more.
    assert any(row.error > 0 for row in result.rows)


@pytest.mark.parametrize(
    ("mesh", "options", "said"),
    [
        ("tensor=3", {}, "intermediate_size 136 does not divide by tensor=3"),
        ("tensor=16", {}, "takes 16 devices, JAX sees 8"),
        ("tensor=2", {"subject": "hf"}, "the subject is another"),
        ("tensor=2", {"stream": True}, "leave out one of the two"),
        ("tensor=2", {"subject": "fused"}, "choose stacked or unrolled"),
        ("tensor=2,overrides", {}, "axis 'overrides'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_read(
    mesh: str, options: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(name: str) -> np.ndarray:
        raise AssertionError(name)

    monkeypatch.setitem(vars(CHECKPOINT), "reader", unread)
    with pytest.raises(InputError) as refused:
        parity.run(CHECKPOINT, mesh=mesh, **options)  # type: ignore[arg-type]
    assert said in str(refused.value)
