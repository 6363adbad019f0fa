"""Killed at any moment, a conversion leaves nothing or the whole; started again, it goes on."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jaxllama.checkpoint import (
    FORMATS,
    check_manifest,
    convert,
    open_checkpoint,
    stream,
    tiny,
    verify,
)
from jaxllama.errors import CheckpointError

# Forks a child for every kill, so that start-up is paid once. The child converts, and kills itself
# at its N-th operation on files: before it, or half-way through a write. A journal entry for every
# tensor, not every 512 MB, makes the moments between entries many. Nothing needs flushing, since a
# kill, unlike a power failure, loses nothing that was written.
NURSERY = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from jaxllama.checkpoint import convert, stream, tiny

    stream._FLUSH_BYTES = 1
    to, root = sys.argv[1], Path(sys.argv[2])
    source = tiny(num_hidden_layers=2)
    real, count, deadline = {}, 0, None

    def counted(name):
        def call(*arguments, **options):
            global count
            count += 1
            if count == deadline:
                if name == "pwrite":
                    descriptor, content, offset = arguments
                    real[name](descriptor, content[: len(content) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            if name != "fsync":
                return real[name](*arguments, **options)
        return call

    for name in ("pwrite", "fsync", "rename", "open", "mkdir", "posix_fallocate"):
        real[name] = getattr(os, name)
        setattr(os, name, counted(name))
    convert(source, root / "warm", to=to)
    count = 0
    convert(source, root / "counted", to=to)
    print(count, flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            count, deadline = 0, int(line)
            convert(source, root / f"target{deadline}", to=to)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
""")


@pytest.mark.parametrize(("to", "kills"), [("hf", 12), ("gguf", 8), ("meta", 8)])
def test_kill_leaves_nothing_or_the_whole(tmp_path, to, kills, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    source = tiny(num_hidden_layers=2)
    interrupted, resumed = 0, 0
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NURSERY, to, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as nursery:
        operations = int(nursery.stdout.readline())
        for moment in sorted(random.Random(to).sample(range(1, operations + 1), kills)):
            nursery.stdin.write(f"{moment}\n")
            nursery.stdin.flush()
            assert int(nursery.stdout.readline()) == -signal.SIGKILL
            target = tmp_path / f"target{moment}"
            if target.exists():
                assert verify(source, target).equal
                continue
            interrupted += (tmp_path / f".{target.name}.partial").exists()
            resumed += convert(source, target, to=to).resumed
            assert verify(source, target).equal
            assert not (tmp_path / f".{target.name}.partial").exists()
        nursery.stdin.close()
    assert interrupted > kills / 2 and resumed > 0


# TensorStore writes in threads of its own: killed by the clock, in a process for each.
ORBAX = textwrap.dedent("""
    import sys
    from jaxllama.checkpoint import convert, stream, tiny
    from jaxllama.checkpoint.orbax import write

    stream._FLUSH_BYTES = write._BATCH_BYTES = 1
    source = tiny(num_hidden_layers=2)
    print("ready", flush=True)
    convert(source, sys.argv[1], to="orbax")
""")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_killed_orbax(tmp_path, share):
    source, target = tiny(num_hidden_layers=2), tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", ORBAX, target], stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout.readline() == "ready\n"
        journal = tmp_path / ".out.partial" / "journal.jsonl"
        while not target.exists():
            if journal.exists() and journal.read_text().count("\n") > share * len(source.tensors):
                break
            time.sleep(0.001)
        worker.kill()
    assert not target.exists() or verify(source, target).equal
    if not target.exists():
        assert convert(source, target, to="orbax").resumed > 0
    assert verify(source, target).equal


class _Stopped(BaseException):
    """As an interrupt from the keyboard: no cleaning up."""


def _stop_after(count: int):
    seen = []

    def progress(*_):
        seen.append(None)
        if len(seen) == count:
            raise _Stopped

    return progress


@pytest.mark.parametrize("to", FORMATS)
def test_resuming_writes_the_rest_alone(tmp_path, to, monkeypatch):
    monkeypatch.setattr(stream, "_FLUSH_BYTES", 1)
    source = tiny(num_hidden_layers=2)
    with pytest.raises(_Stopped):
        convert(source, tmp_path / "out", to=to, progress=_stop_after(10))
    assert not (tmp_path / "out").exists()
    result = convert(source, tmp_path / "out", to=to)
    assert 9 <= result.resumed < len(source.tensors)
    assert verify(source, tmp_path / "out").equal
    assert result.digests == verify(source, source).digests


def test_another_plan_starts_over(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_FLUSH_BYTES", 1)
    source = tiny(num_hidden_layers=2)
    with pytest.raises(_Stopped):
        convert(source, tmp_path / "out", to="hf", progress=_stop_after(10))
    result = convert(source, tmp_path / "out", to="hf", dtype="bfloat16")
    assert result.resumed == 0
    assert open_checkpoint(tmp_path / "out").tensors["model.norm.weight"].dtype == "bfloat16"


def test_other_weights_of_the_same_shapes_start_over(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_FLUSH_BYTES", 1)
    with pytest.raises(_Stopped):
        convert(tiny(), tmp_path / "out", to="hf", progress=_stop_after(10))
    assert convert(tiny(seed=1), tmp_path / "out", to="hf").resumed == 0
    assert verify(tiny(seed=1), tmp_path / "out").equal


def test_a_source_that_changed_starts_over(tmp_path, single, monkeypatch):
    monkeypatch.setattr(stream, "_FLUSH_BYTES", 1)
    with pytest.raises(_Stopped):
        convert(single, tmp_path / "out", to="hf", progress=_stop_after(10))
    os.utime(single / "model.safetensors")
    assert convert(single, tmp_path / "out", to="hf").resumed == 0


def test_a_torn_journal_line_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_FLUSH_BYTES", 1)
    source = tiny(num_hidden_layers=2)
    with pytest.raises(_Stopped):
        convert(source, tmp_path / "out", to="hf", progress=_stop_after(10))
    journal = tmp_path / ".out.partial" / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"name": "lm_head.weight", "nby')
    assert convert(source, tmp_path / "out", to="hf").resumed == 10
    assert verify(source, tmp_path / "out").equal


@pytest.fixture
def renames(monkeypatch):
    """A list of what happens at each renaming into or out of place: None, or what is raised.

    An entry is (before, error): whether it is raised before the renaming, or after it.
    """
    plan: list[tuple[bool, BaseException] | None] = []
    real = os.rename

    def rename(old, new):
        before, error = (plan.pop(0) if plan else None) or (True, None)
        if error and before:
            raise error
        real(old, new)
        if error:
            raise error

    monkeypatch.setattr(os, "rename", rename)
    return plan


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("name", "number"), [("out", 0), ("out", 1), *(("out.gguf", n) for n in range(4))]
)
def test_stopped_while_replacing(tmp_path, renames, name, number, before):
    """The old or the new, never a mixture; and started again, the new."""
    to = "gguf" if name.endswith("gguf") else "hf"
    old, new, target = tiny(seed=1), tiny(), tmp_path / name
    convert(old, target, to=to)
    renames += [None] * number + [(before, _Stopped())]
    with pytest.raises(_Stopped):
        convert(new, target, to=to, overwrite=True)
    if target.exists():
        assert any(verify(source, target).equal for source in (old, new))
    convert(new, target, to=to, overwrite=True)
    assert verify(new, target).equal
    check_manifest(open_checkpoint(target))
    assert not (tmp_path / f".{name}.partial").exists()


@pytest.mark.parametrize(("name", "number"), [("out", 1), ("out.gguf", 3)])
def test_failure_while_replacing_puts_the_old_back(tmp_path, renames, name, number):
    to, target = "gguf" if name.endswith("gguf") else "hf", tmp_path / name
    convert(tiny(seed=1), target, to=to)
    before = sorted(tmp_path.rglob("*"))
    renames += [None] * number + [(True, OSError(errno.EIO, os.strerror(errno.EIO)))]
    with pytest.raises(CheckpointError, match=r"Input/output error; what was there is as it was"):
        convert(tiny(), target, to=to, overwrite=True)
    assert verify(tiny(seed=1), target).equal and sorted(tmp_path.rglob("*")) == before
    check_manifest(open_checkpoint(target))


def test_what_a_crash_at_the_very_end_left_is_removed(tmp_path, renames):
    renames.append((False, _Stopped()))
    with pytest.raises(_Stopped):
        convert("tiny", tmp_path / "out", to="hf")
    assert (tmp_path / ".out.partial").exists() and verify("tiny", tmp_path / "out").equal
    with pytest.raises(CheckpointError, match="exists already"):
        convert("tiny", tmp_path / "out", to="hf")
    assert not (tmp_path / ".out.partial").exists()


def test_file_too_large_for_the_system_is_one_line(tmp_path):
    """A limit on file sizes stands in for a full disk, in a process of its own."""
    script = textwrap.dedent("""
        import resource, sys
        from jaxllama.cli import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        main(["convert", "tiny", sys.argv[1], "--to", sys.argv[2], "--quiet"])
    """)
    for to in ("hf", "gguf", "orbax"):
        run = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "out", to], capture_output=True, text=True
        )
        assert run.returncode == 2
        assert run.stderr.startswith(f"jaxllama: {tmp_path}/")
        assert "cannot be written" in run.stderr and "File too large" in run.stderr
        assert run.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_failure_while_reading_leaves_nothing(tmp_path, single, monkeypatch):
    def broken(*_):
        raise CheckpointError("disk on fire")

    checkpoint = open_checkpoint(single)
    monkeypatch.setattr("jaxllama.checkpoint.hf.read.read_tensor", broken)
    with pytest.raises(CheckpointError, match="disk on fire"):
        convert(checkpoint, tmp_path / "out", to="hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["single"]
