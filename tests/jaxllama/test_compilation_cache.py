"""Compiled programs kept between processes: whole or not there, apart by machine, bounded."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import monitoring

from jaxllama import compilation_cache
from jaxllama.compilation_cache import NO_CACHE, Entries, evict

ROOT = Path(__file__).parents[2]
VALUE = bytes(range(256)) * 3


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("*/*"))


def outside(tmp_path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user would, with a cache of this test alone."""
    environment = {**os.environ, "JAXLLAMA_CACHE": str(tmp_path), **variables}
    if NO_CACHE not in variables:
        environment.pop(NO_CACHE, None)
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


# --- entries ---


def test_what_was_put_is_got_by_its_key(tmp_path: Path):
    Entries(tmp_path).put("key", VALUE)
    other = Entries(tmp_path)
    assert other.get("key") == VALUE and other.get("another") is None
    (path,) = files(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 500, 799])
def test_an_entry_cut_short_is_not_there_and_written_again(tmp_path: Path, length: int):
    entries = Entries(tmp_path)
    entries.put("key", VALUE)
    (path,) = files(tmp_path)
    assert path.stat().st_size == 800
    path.write_bytes(path.read_bytes()[:length])
    assert entries.get("key") is None
    entries.put("key", VALUE)
    assert entries.get("key") == VALUE


@pytest.mark.parametrize("at", [0, 40, 799])
def test_an_entry_with_a_changed_bit_is_not_there(tmp_path: Path, at: int):
    entries = Entries(tmp_path)
    entries.put("key", VALUE)
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    assert entries.get("key") is None
    content[at] ^= 1
    path.write_bytes(content)
    assert entries.get("key") == VALUE


def test_an_entry_under_the_name_of_another_is_not_there(tmp_path: Path):
    entries = Entries(tmp_path)
    entries.put("key", VALUE)
    (path,) = files(tmp_path)
    entries.put("another", VALUE)
    (other,) = set(files(tmp_path)) - {path}
    path.replace(other)
    assert entries.get("another") is None and entries.get("key") is None


def test_a_process_killed_while_it_writes_leaves_no_entry(tmp_path: Path):
    # It writes half of the entry, says so and waits.
    code = f"""
import os, sys, time
from pathlib import Path
from jaxllama.compilation_cache import Entries
before = os.fdopen
def fdopen(number, mode):
    file = before(number, mode)
    class Slow:
        __enter__ = lambda self: self
        __exit__ = lambda self, *_: None
        def write(self, content):
            file.write(content[:400]); file.flush()
            print("half", flush=True)
            time.sleep(600)
    return Slow()
os.fdopen = fdopen
Entries(Path({str(tmp_path)!r})).put("key", bytes(768))
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"half\n"
        os.kill(writer.pid, signal.SIGKILL)
    (left,) = files(tmp_path)
    assert left.stat().st_size == 400
    entries = Entries(tmp_path)
    assert entries.get("key") is None
    entries.put("key", VALUE)
    assert entries.get("key") == VALUE


def test_processes_that_write_the_same_entries_at_once_leave_them_whole(tmp_path: Path):
    code = f"""
import sys
from pathlib import Path
from jaxllama.compilation_cache import Entries
entries = Entries(Path({str(tmp_path)!r}), 100_000)
sys.stdin.readline()
for turn in range(30):
    for key in "abcde":
        entries.put(key, (key * 5000).encode())
        found = entries.get(key)
        assert found is None or found == (key * 5000).encode(), found[:80]
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE)
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        writer.stdin.close()
    assert [writer.wait() for writer in writers] == [0, 0]
    entries = Entries(tmp_path)
    assert {key: entries.get(key) for key in "abcde"} == {
        key: (key * 5000).encode() for key in "abcde"
    }
    assert len(files(tmp_path)) == 5  # nothing half-written stays


def test_the_longest_unread_go_first_whatever_folder_they_lie_in(tmp_path: Path, monkeypatch):
    names = iter(["old", "new"])
    monkeypatch.setattr(compilation_cache, "machine", lambda: next(names))
    old, new = Entries(tmp_path, 10_000), Entries(tmp_path, 10_000)
    for count, key in enumerate("abcdefgh"):
        old.put(key, VALUE)
        for path in (tmp_path / "old").iterdir():
            if path.stat().st_mtime > 1000:
                os.utime(path, (count, count))
    assert old.get("a") == VALUE  # which is the newest now
    for key in "stuvw":
        new.put(key, VALUE)
    total = sum(path.stat().st_size for path in files(tmp_path))
    assert 6_000 < total <= 10_000
    assert old.get("a") == VALUE and all(new.get(key) == VALUE for key in "stuvw")
    assert old.get("b") is None and old.get("c") is None


def test_an_empty_folder_goes_with_its_last_entry(tmp_path: Path):
    for folder, when in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "entry").write_bytes(VALUE)
        os.utime(tmp_path / folder / "entry", (when, when))
    evict(tmp_path, 2000)  # enough for both
    assert len(files(tmp_path)) == 2
    evict(tmp_path, 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_no_link_is_followed(tmp_path: Path, monkeypatch, capfd):
    """Nothing is read or written through one, nor removed where it leads."""
    monkeypatch.setattr(compilation_cache, "machine", lambda: "folder")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_bytes(VALUE)
    root = tmp_path / "compiled"
    root.mkdir()
    (root / "folder").symlink_to(tmp_path / "mine")
    entries = Entries(root, 100)
    entries.put("key", VALUE)
    assert entries.get("key") is None and "is a symbolic link" in capfd.readouterr().err
    evict(root, 10)
    assert os.listdir(tmp_path / "mine") == ["thesis"] and (root / "folder").is_symlink()


@pytest.mark.parametrize("place", ["root", "folder"])
def test_a_file_in_place_of_the_folder_is_one_note(tmp_path: Path, place: str, capfd):
    root = tmp_path / "compiled"
    if place == "folder":
        root.mkdir()
        (root / compilation_cache.machine()).write_text("a file")
    else:
        root.write_text("a file")
    entries = Entries(root)
    for _ in range(3):
        assert entries.get("key") is None
        entries.put("key", VALUE)
    said = capfd.readouterr().err
    assert said.count("note:") == said.count("\n") == 1 and str(root) in said


def test_a_full_disk_is_one_note_and_no_rubbish(tmp_path: Path, monkeypatch, capfd):
    entries = Entries(tmp_path)
    entries.put("first", VALUE)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        entries.put("second", VALUE)
    entries.put("third", VALUE)
    assert entries.get("first") == VALUE  # reading goes on
    assert entries.get("second") is None and entries.get("third") is None
    assert len(files(tmp_path)) == 1
    said = capfd.readouterr().err
    assert said.count("note:") == 1 and "No space left" in said


def test_nothing_is_read_where_others_may_write(tmp_path: Path, capfd):
    Entries(tmp_path).put("key", VALUE)
    folder = files(tmp_path)[0].parent
    assert Entries(tmp_path).get("key") == VALUE
    folder.chmod(0o777)
    entries = Entries(tmp_path)
    assert entries.get("key") is None
    entries.put("another", VALUE)
    assert len(files(tmp_path)) == 1
    said = capfd.readouterr().err
    assert said.count("note:") == 1 and "others may write" in said


# --- machines ---


def test_a_folder_is_for_one_machine_and_its_flags(tmp_path: Path, monkeypatch):
    flags = tmp_path / "flags"
    flags.write_text("--xla_cpu_enable_fast_math=false")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    here = compilation_cache.machine()
    assert here == compilation_cache.machine()
    assert here.startswith(f"jax-{jax.__version__}-{jax.default_backend()}-")
    seen = [here]
    for value in ("--xla_cpu_max_isa=SSE4_2", "--xla_cpu_max_isa=AVX2", str(flags)):
        monkeypatch.setenv("XLA_FLAGS", value)
        seen.append(compilation_cache.machine())
    flags.write_text("--xla_cpu_enable_fast_math=true")
    seen.append(compilation_cache.machine())
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setenv("UNRELATED", "1")
    assert compilation_cache.machine() == here
    for name in ("NPROC", "JAX_CPU_ENABLE_ASYNC_DISPATCH", "NVIDIA_TF32_OVERRIDE"):
        monkeypatch.setenv(name, "1")
        seen.append(compilation_cache.machine())
    monkeypatch.setattr(compilation_cache, "processor", lambda: ["flags : sse sse2"])
    seen.append(compilation_cache.machine())
    monkeypatch.setattr(jax, "__version__", "0.10.99")
    seen.append(compilation_cache.machine())
    monkeypatch.setattr(jax, "default_backend", lambda: "rocm")
    seen.append(compilation_cache.machine())
    monkeypatch.setattr(os, "cpu_count", lambda: 97)
    seen.append(compilation_cache.machine())
    assert len(set(seen)) == len(seen) == 12


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux has /proc/cpuinfo")
def test_a_processor_is_known_by_its_features_and_not_by_its_speed():
    said = "\n".join(compilation_cache.processor())
    assert "MHz" not in said and any(word in said for word in ("flags", "Features", "isa", "cpu"))


# --- JAX ---


def sines(x: jax.Array) -> jax.Array:
    return jnp.sin(x) @ jnp.cos(x.T) + 3


def test_a_program_is_compiled_once_and_gives_the_same_bits(kept_programs: Path):
    x = jnp.asarray(np.random.default_rng(5).normal(size=(7, 11)))
    program = jax.jit(sines)
    alone = np.asarray(program(x))
    assert not kept_programs.exists()
    hits: list[str] = []

    def hear(event: str, **_: object) -> None:
        hits.append(event)

    jax.monitoring.register_event_listener(hear)
    compilation_cache.turn_on()
    assert compilation_cache.is_on()
    results = []
    for _ in range(2):
        program.clear_cache()
        results.append(np.asarray(program(x)))
    assert hits.count("/jax/compilation_cache/cache_hits") >= 1
    (folder,) = kept_programs.iterdir()
    assert folder.name == compilation_cache.machine()
    # Every entry damaged: all is compiled again, kept again and right.
    for path in files(kept_programs):
        path.write_bytes(path.read_bytes()[:-7])
    before = hits.count("/jax/compilation_cache/cache_hits")
    program.clear_cache()
    results.append(np.asarray(program(x)))
    assert hits.count("/jax/compilation_cache/cache_hits") == before
    program.clear_cache()
    results.append(np.asarray(program(x)))
    assert hits.count("/jax/compilation_cache/cache_hits") > before
    monitoring.unregister_event_listener(hear)
    assert all(result.tobytes() == alone.tobytes() for result in results)


@pytest.mark.parametrize(
    "why", ["variable", "option", "folder of the user's own", "devices", "devices by XLA_FLAGS"]
)
def test_it_is_not_turned_on_where_it_is_not_wanted(kept_programs: Path, monkeypatch, why: str):
    if why == "variable":
        monkeypatch.setenv(NO_CACHE, "1")
    elif why == "option":
        monkeypatch.setenv(NO_CACHE, "")  # put back after the test
        compilation_cache.turn_off()
    elif why == "devices":
        monkeypatch.setattr(type(jax.config), "jax_num_cpu_devices", 2)
    elif why == "devices by XLA_FLAGS":
        monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    else:
        jax.config.update("jax_compilation_cache_dir", str(kept_programs))
    compilation_cache.turn_on()
    assert not compilation_cache.is_on()


def test_it_is_turned_on_for_one_device(kept_programs: Path, monkeypatch):
    monkeypatch.setattr(type(jax.config), "jax_num_cpu_devices", 1)
    compilation_cache.turn_on()
    assert compilation_cache.is_on()


def test_an_older_jax_is_one_note(kept_programs: Path, monkeypatch, capfd):
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 1))
    compilation_cache.turn_on()
    assert not compilation_cache.is_on()
    assert capfd.readouterr().err.count("note:") == 1


def test_neither_package_turns_it_on_and_the_commands_import_jax_no_sooner(tmp_path: Path):
    code = """
import sys, jaxllama.cli, jaxllama.compilation_cache
assert "jax" not in sys.modules
import parity, parity.runner, jaxllama.generate, jax
assert not jaxllama.compilation_cache.is_on()
assert jax.config.jax_compilation_cache_dir is None
jaxllama.compilation_cache.turn_on()
assert jaxllama.compilation_cache.is_on()
"""
    found = outside(tmp_path, "-c", code)
    assert found.returncode == 0, found.stderr


# --- commands ---

GENERATE = ("-m", "jaxllama", "generate", "tiny", "Hi", "--max-tokens", "3", "--quiet")
JUDGE = ("parity", "run", "tiny", "--dtype", "f32", "--mode", "free", "--scenario", "causal")


def test_generate_writes_the_same_with_and_without(tmp_path: Path):
    without = outside(tmp_path, *GENERATE[:2], "--no-cache", *GENERATE[2:])
    assert outside(tmp_path, *GENERATE, "--no-cache").stdout == without.stdout
    assert not (tmp_path / "compiled").exists()
    cold = outside(tmp_path, *GENERATE)
    entries = files(tmp_path / "compiled")
    assert entries
    written = {path: path.stat() for path in entries}
    warm = outside(tmp_path, *GENERATE)
    assert files(tmp_path / "compiled") == entries
    for path, before in written.items():  # the second start reads each, and compiles none anew
        now = path.stat()
        assert now.st_ino == before.st_ino and now.st_mtime_ns > before.st_mtime_ns
    assert without.returncode == cold.returncode == warm.returncode == 0, cold.stderr
    assert without.stdout == cold.stdout == warm.stdout != ""
    assert without.stderr == cold.stderr == warm.stderr == ""


def test_a_command_whose_cache_cannot_be_made_says_so_once(tmp_path: Path):
    (tmp_path / "compiled").write_text("a file")
    found = outside(tmp_path, *GENERATE)
    assert found.returncode == 0 and found.stdout
    assert found.stderr.count("note:") == found.stderr.count("\n") == 1
    assert re.search(r"compiled/jax-[^/]*: Not a directory; JAXLLAMA_CACHE names", found.stderr)


def test_a_cache_of_another_instruction_set_is_left_alone(tmp_path: Path):
    less = {"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"}
    seen: list[set[Path]] = [set()]
    for variables in ({}, less, {}):
        began = time.time()
        found = outside(tmp_path, "-m", *JUDGE, "--length", "9", **variables)
        assert found.returncode == 0, found.stdout + found.stderr
        assert found.stdout.startswith("equal: "), found.stdout
        assert found.stderr == ""
        new = set(files(tmp_path / "compiled")) - seen[-1]
        folders = {path.parent.name for path in new}
        read = {p.parent.name for p in seen[-1] if p.exists() and p.stat().st_mtime >= began}
        seen.append(seen[-1] | new)
        assert len(folders) <= 1 and len(folders | read) == 1, (folders, read)
    counts = [len(found) for found in seen]
    assert 0 < counts[1] < counts[2] == counts[3]
    assert len(list((tmp_path / "compiled").iterdir())) == 2
