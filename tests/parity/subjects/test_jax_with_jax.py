"""JAX compared with JAX: two captures, of the same model run in different ways."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from jax_subjects import quantised
from witnesses import small

import parity
from jaxllama import Llama
from jaxllama.checkpoint import from_model
from parity.result import Divergence, Result
from parity.subjects.jaxllama.subject import JaxLlama

ROOT = Path(__file__).parents[3]
OPTIONS = ["--dtype", "f64,f32", "--scenario", "packed", "--length", "11"]
CAPTURES = """
import sys
from parity import cli

for name in ("sharded", "one_part_lost"):
    cli.app(
        ["capture", "tiny", "-o", name, "--subject", f"jax_subjects:{name}", *sys.argv[1:]],
        standalone_mode=False,
    )
"""


def captured(directory: Path, subject: object = "jaxllama", checkpoint: object = None) -> Path:
    options = {"dtypes": "f64,f32", "scenarios": "packed", "length": 11}
    parity.capture(checkpoint or small(), directory, subject=subject, **options)  # type: ignore[arg-type]
    return directory


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captured(tmp_path_factory.mktemp("jax") / "ours")


def first(result: Result) -> Divergence:
    assert result.verdict == "divergent"
    assert result.first_divergence is not None
    return result.first_divergence


@pytest.fixture(scope="module")
def on_two_devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captures of `tiny` split over two devices, made by a process that has as many."""
    here = tmp_path_factory.mktemp("mesh")
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/support")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", CAPTURES, *OPTIONS],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    captured(here / "ours", checkpoint="tiny")
    return here


def test_a_model_on_a_mesh_is_equal(on_two_devices: Path) -> None:
    result = parity.compare(on_two_devices / "sharded", on_two_devices / "ours")
    assert result.verdict == "equal"
    assert result.compared == result.expected and not result.absent
    # Sums in another order: not our own run once more.
    assert {row.lane for row in result.rows if row.tap == "layers.0.o_proj" and row.error > 0} == {
        "f64",
        "f32",
    }


def test_a_part_of_a_sum_that_a_device_loses_is_located(on_two_devices: Path) -> None:
    """The clean twin is the test above: it has the same parts and all of them."""
    found = first(parity.compare(on_two_devices / "one_part_lost", on_two_devices / "ours"))
    assert found.row.tap == "layers.0.o_proj"


def test_quantised_weights_are_located_at_the_first_product(ours: Path, tmp_path: Path) -> None:
    int8 = captured(tmp_path / "int8", quantised)
    found = first(parity.compare(int8, ours))
    assert (found.row.tap, found.row.lane) == ("layers.0.q_proj", "f64")
    assert 1e-4 < found.row.error < 0.1  # half a step of 127 in the largest weight


def test_a_quantised_model_is_held_to_itself(tmp_path: Path) -> None:
    """Its float64 run is then the truth: what is left is the rounding of the arithmetic."""
    once, again = (captured(tmp_path / name, quantised) for name in ("once", "again"))
    result = parity.compare(once, again)
    assert result.verdict == "equal" and result.compared == result.expected
    assert any(row.error > 0 for row in result.rows if row.lane == "f32")


def exchanged(model: Llama, lane: str) -> JaxLlama:
    """Return a fused model with two layers in each other's place."""
    fused = Llama.from_pretrained(from_model(model), dtype=lane, form="fused")
    fused.layers[0], fused.layers[1] = fused.layers[1], fused.layers[0]
    return JaxLlama(fused, lane)


def test_the_forms_of_a_model_are_equal_and_exchanged_layers_are_not(tmp_path: Path) -> None:
    made = {form: captured(tmp_path / form, form) for form in ("stacked", "unrolled", "fused")}
    for one, other in combinations(made.values(), 2):
        result = parity.compare(one, other)
        assert result.verdict == "equal" and result.compared == result.expected
    found = first(parity.compare(captured(tmp_path / "exchanged", exchanged), made["stacked"]))
    assert found.row.tap == "layers.0.input_layernorm"
