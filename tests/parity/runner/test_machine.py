"""The machine is named as it is used, not as it might be."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from parity.runner import environment, machine

_CHILD = "import torch; from parity.runner import machine; print(machine.describe())"


def described(**variables: str) -> dict[str, Any]:
    """Describe the machine in a process with settings of its own."""
    kept = {n: v for n, v in os.environ.items() if n not in machine.SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        env=kept | {"JAX_PLATFORMS": "cpu"} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    found = eval(done.stdout)  # a dict of names and numbers, printed by the line above
    assert isinstance(found, dict)
    return found


def test_settings_show_in_what_is_used_and_their_absence_too() -> None:
    name, features = machine.processor()
    plain = described()
    held = described(
        XLA_FLAGS="--xla_cpu_max_isa=SSE4_2 --xla_force_host_platform_device_count=3",
        ATEN_CPU_CAPABILITY="default",
        OMP_NUM_THREADS="1",
    )
    assert plain["processor"] == held["processor"] == name
    assert plain["xla_devices"] == 1 and held["xla_devices"] == 3
    assert held["torch_threads"] == 1 and "PyTorch DEFAULT, 1 thread" in held["line"]
    assert plain["settings"] == "" and "OMP_NUM_THREADS=1" in held["line"]
    if "avx2" in features:  # else a processor that SSE4.2 does not hold back
        assert plain["xla_instructions"] in ("AVX2", "AVX-512")
        assert "avx2" in plain["xla_features"].split()
        assert "XLA SSE4.2," in held["line"] and "3 devices" in held["line"]
        assert "avx2" not in held["xla_features"].split()


def test_who_makes_products_is_said() -> None:
    plain = described()
    if plain["xla_products"] != "YNNPACK":
        pytest.skip(f"products of this jaxlib are made by {plain['xla_products']}")
    assert f"products by YNNPACK on {plain['processor_instructions']}" in plain["line"]
    without = described(XLA_FLAGS="--xla_cpu_experimental_ynn_fusion_type=")
    assert without["xla_products"] == "XLA" and "by YNNPACK" not in without["line"]


def test_a_compiler_that_does_not_say_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "compiler", lambda: (frozenset(), ""))
    assert machine.describe()["xla_instructions"] == "unknown"
    monkeypatch.undo()
    assert machine.describe()["xla_instructions"] != "unknown"


def test_pytorch_is_named_where_it_took_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert f"PyTorch {torch.backends.cpu.get_cpu_capability()}" in machine.describe()["line"]
    monkeypatch.delitem(sys.modules, "torch")
    assert "PyTorch" not in machine.describe()["line"]


def test_every_environment_names_the_machine() -> None:
    found = environment.describe()["machine"]
    assert found == machine.describe() and "\n" not in found["line"]
