"""Two processes train one model; what they saved goes on in one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from trainings import config, settings, toml

from jaxllama import open_checkpoint
from jaxllama.train import train
from jaxllama.train.state import latest_step

ROOT = Path(__file__).parents[3]
CHANGED: dict[str, Any] = {"data": {"length": 24}, "optimiser": {"warmup": 0}}


def commands(folder: Path, steps: int, *words: str) -> list[subprocess.Popen[str]]:
    """Start `jaxllama train` in two processes of two devices each."""
    given = settings(
        folder, model={"mesh": "data=2,tensor=2"}, run={"steps": steps}, monitor={"every": 2}
    )
    for section, values in CHANGED.items():
        given[section] |= values
    (folder / "c.toml").write_text(toml(given))
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        port = listening.getsockname()[1]
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    started = [sys.executable, "-m", "jaxllama", "train", str(folder / "c.toml"), *words]
    return [
        subprocess.Popen(
            [*started, "--hosts", f"localhost:{port},{index}/2"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, ...]:
    folder = tmp_path_factory.mktemp("alone")
    return train(config(folder, run={"steps": 4}, **CHANGED)).losses


def test_two_processes_have_the_losses_of_one(alone: tuple[float, ...], tmp_path: Path) -> None:
    ends = [process.communicate(timeout=200) for process in commands(tmp_path, 3)]
    assert ends[0][0].startswith(f"{tmp_path}/out/model: loss "), ends
    assert float(ends[0][0].split()[2].rstrip(",")) == pytest.approx(alone[2], rel=1e-4)
    assert ends[1][0] == ""
    assert open_checkpoint(tmp_path / "out/model").format == "orbax"
    # The same state on one device: to rounding, for sums are other.
    rest = train(config(tmp_path, run={"steps": 4}, **CHANGED), resume=True)
    assert rest.losses == pytest.approx(alone[3:], rel=1e-4)


def test_ctrl_c_to_one_stops_both_after_the_same_step(tmp_path: Path) -> None:
    both = commands(tmp_path, 100_000)
    events = tmp_path / "out/events"
    end = time.monotonic() + 150
    while time.monotonic() < end and not sum(p.stat().st_size for p in events.glob("*")) > 2000:
        assert [process.poll() for process in both] == [None, None]
        time.sleep(0.2)
    both[1].send_signal(signal.SIGINT)
    ends = [process.communicate(timeout=100) for process in both]
    step = latest_step(tmp_path / "out")
    assert [process.returncode for process in both] == [130, 130], ends
    assert step and f"the state after step {step} is saved" in ends[0][1]
