"""Two processes run one model; and one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hosts_worker
import jax
import numpy as np
import pytest
from witnesses import small

import parity
from jaxllama import convert, open_checkpoint
from jaxllama.checkpoint import validate
from jaxllama.errors import CheckpointError, InputError
from jaxllama.sharding import hosts
from jaxllama.sharding.hosts import EXIT_CODE, host_array, several_hosts

ROOT = Path(__file__).parents[3]
# Beside the heartbeat: how long a machine with more to do may take.
LIMIT_SECONDS = 60


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return int(listening.getsockname()[1])


@contextmanager
def processes(folder: Path, words: list[list[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/support")]),
    }
    started = []
    for index, one in enumerate(words):
        with (folder / f"stderr-{index}").open("w") as errors:
            started.append(
                subprocess.Popen(
                    [sys.executable, *one],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            )
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def workers(folder: Path, work: str) -> Any:
    port = str(free_port())
    script = str(Path(hosts_worker.__file__))
    return processes(folder, [[script, work, str(folder), port, str(i)] for i in range(2)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(small((8, 2)), tmp_path_factory.mktemp("hosts") / "hf", to="hf").target


@pytest.fixture(scope="module")
def together(checkpoint: Path) -> Path:
    folder = checkpoint.parent
    with workers(folder, "whole") as both:
        codes = [process.wait(300) for process in both]
    said = "\n".join((folder / f"stderr-{i}").read_text()[-3000:] for i in range(2))
    assert codes == [0, 0], said
    return folder


@pytest.fixture(scope="module")
def alone(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    return {**hosts_worker.whole(checkpoint, folder, None, None), "folder": folder}


def test_two_processes_compute_what_one_does(together: Path, alone: dict[str, Any]) -> None:
    found = [json.loads((together / f"found-{i}.json").read_text()) for i in range(2)]
    for one in found:
        assert one["devices"] == [4, 2]
        assert one["tokens"] == alone["tokens"]
        np.testing.assert_allclose(one["losses"], alone["losses"], rtol=1e-12)
    assert alone["losses"][1] < alone["losses"][0] - 1e-3  # the step has been taken, and saved


def test_each_process_reads_its_own_part(together: Path, alone: dict[str, Any]) -> None:
    """Along `fsdp`, a half; with `data=2,tensor=2` the devices of a process have both halves."""
    whole = alone["bytes"][1]
    for i in range(2):
        read, stored, parts = json.loads((together / f"found-{i}.json").read_text())["bytes"]
        assert stored == whole == read and 0.5 * whole <= parts < 0.6 * whole
    assert alone["bytes"][0] == whole


def test_the_traces_of_both_are_one(together: Path, alone: dict[str, Any]) -> None:
    result = parity.compare(together / "traces", alone["folder"] / "traces")
    assert result.verdict == "equal" and result.compared == result.expected


def test_what_was_saved_is_a_checkpoint(together: Path, checkpoint: Path) -> None:
    saved = open_checkpoint(together / "trained")
    validate(saved)
    assert {*saved.companions} == {*open_checkpoint(checkpoint).companions}
    assert not [*together.glob(".*saving*")]


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError("ended before it had begun")


@pytest.mark.parametrize("work", ["forever", "idle"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other(
    checkpoint: Path, tmp_path: Path, work: str, victim: int
) -> None:
    """The first, which coordinates, and the other; between operations and in the midst of them."""
    (tmp_path / "hf").symlink_to(checkpoint)
    with workers(tmp_path, work) as both:
        for process in both:
            wait_for(process, "saved")
        time.sleep(0.3)  # into the next step, or its saving
        both[victim].send_signal(signal.SIGKILL)
        survivor = both[1 - victim]
        assert survivor.wait(LIMIT_SECONDS) == EXIT_CODE
    said = (tmp_path / f"stderr-{1 - victim}").read_text()
    assert said.count("another process of this run is lost") == 1
    assert f"jaxllama: process {1 - victim} of 2: " in said
    if work != "forever":  # Orbax, in the midst of saving, may raise an error of its own above it
        assert "Traceback" not in said, said
    saved = list(tmp_path.glob("step-*"))
    assert bool(saved) == (work == "forever")
    for path in saved:
        validate(open_checkpoint(path))


def test_a_loss_is_told_from_other_errors_and_behind_those_that_it_made() -> None:
    def caused(error: Exception, by: Exception) -> Exception:
        error.__cause__ = by
        return error

    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
    saving = caused(CheckpointError("step-1: cannot be written"), lost)
    assert hosts._loss(lost) == hosts._loss(caused(ValueError(), saving)) == str(lost)
    for other in (ValueError("gloo"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory")):
        assert not hosts._loss(other) and not hosts._loss(caused(CheckpointError("x"), other))


def test_a_command_on_several_hosts_speaks_once(checkpoint: Path, tmp_path: Path) -> None:
    port = free_port()
    words = ["-m", "jaxllama", "generate", str(checkpoint), "Once", "--max-tokens", "4", "--json"]
    words += ["--mesh", "tensor=4"]
    addressed = [[*words, "--hosts", f"localhost:{port},{i}/2"] for i in range(2)]
    with processes(tmp_path, addressed) as both:
        said = [process.communicate(timeout=200)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0]
    assert len(json.loads(said[0])["tokens"]) <= 4 and not said[1]


@pytest.mark.parametrize("both_err", [False, True])
def test_a_process_with_an_error_of_its_own_says_that_and_no_loss(
    checkpoint: Path, tmp_path: Path, both_err: bool
) -> None:
    port, absent = free_port(), str(tmp_path / "absent")
    options = ["--max-tokens", "4", "--mesh", "tensor=4"]
    words = []
    for i in range(2):
        place = absent if i or both_err else str(checkpoint)
        address = f"localhost:{port},{i}/2"
        words.append(["-m", "jaxllama", "generate", place, "Once", *options, "--hosts", address])
    with processes(tmp_path, words) as started:
        codes = [process.wait(LIMIT_SECONDS) for process in started]
    said = [(tmp_path / f"stderr-{i}").read_text() for i in range(2)]
    assert codes == [2 if both_err else EXIT_CODE, 2], said
    assert "does not exist" in said[1] and "is lost" not in said[1]
    assert ("is lost" in said[0]) != both_err


@pytest.mark.parametrize(
    "given", ["", "localhost", "localhost:1", "localhost:1,2/2", "localhost:1,-1/2", "a b:1,0/2"]
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT,INDEX/COUNT"), several_hosts(given):
        raise AssertionError


def started(words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process that is all of its run."""
    address = f"localhost:{free_port()},0/1"
    return subprocess.run(
        [sys.executable, "-c", words.replace("ADDRESS", repr(address))],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | more,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_what_ends_a_process_afterwards_is_not_called_a_loss() -> None:
    words = """
import os
from jaxllama.sharding.hosts import several_hosts
with several_hosts(ADDRESS):
    pass
os.abort()
"""
    done = started(words)
    assert done.returncode == -signal.SIGABRT and "is lost" not in done.stderr


@pytest.mark.parametrize("debug", [False, True])
def test_an_operation_that_fails_by_a_loss_is_one_line(debug: bool) -> None:
    words = """
import sys
import jax
from jaxllama.sharding.hosts import several_hosts
with several_hosts(ADDRESS):
    jax.process_count = lambda: 2
    sys.argv += DEBUG
    raise jax.errors.JaxRuntimeError("UNAVAILABLE: Gloo all-reduce failed:\\n closed by peer")
"""
    done = started(words.replace("DEBUG", str(["--debug"] if debug else [])))
    lines = done.stderr.splitlines()
    assert done.returncode == EXIT_CODE and "is lost" in lines[-1]
    assert "Gloo all-reduce failed: closed by peer" in lines[-1]
    assert (len(lines) == 1) != debug and ("Traceback" in done.stderr) == debug


def test_without_anything_that_started_processes_auto_is_refused() -> None:
    words = """
from jaxllama.sharding.hosts import several_hosts
with several_hosts("auto"):
    pass
"""
    done = started(words)
    assert done.returncode == 1 and "have not met" in done.stderr, done.stderr
    assert "Slurm" in done.stderr


def test_a_process_that_has_begun_is_told_so() -> None:
    words = """
import jax
from jaxllama.sharding.hosts import several_hosts
jax.device_put(1.0)
with several_hosts(ADDRESS):
    pass
"""
    done = started(words)
    assert done.returncode == 1 and "has been asked of JAX before" in done.stderr


def test_what_ends_a_process_after_it_met_nobody_is_not_called_that() -> None:
    words = """
import os
import jax
from jaxllama.errors import CheckpointError, InputError
from jaxllama.sharding import hosts
from jaxllama.sharding.hosts import several_hosts
jax.device_put(1.0)
try:
    with several_hosts(ADDRESS):
        pass
except InputError:
    os.abort()
"""
    done = started(words)
    assert done.returncode == -signal.SIGABRT and "have not met" not in done.stderr


def test_a_process_that_does_not_come_is_named_by_the_place() -> None:
    words = """
import jax
from jaxllama.sharding import hosts
class Late:
    def wait_at_barrier(self, name, timeout_in_ms):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out")
jax.devices()
hosts.global_state.client = Late()
try:
    hosts.meet("the save", seconds=7)
except jax.errors.JaxRuntimeError:
    hosts._end()
"""
    done = started(words)
    assert done.returncode == EXIT_CODE and "come to the save within 7 s" in done.stderr


def test_an_array_that_is_here_is_read_here() -> None:
    np.testing.assert_array_equal(host_array(np.arange(3)), np.arange(3))
