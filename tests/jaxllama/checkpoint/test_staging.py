"""Links and files made beforehand where a conversion writes: refused, and left as they are."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest

from jaxllama import save_lora
from jaxllama.checkpoint import convert, stream, tiny, verify
from jaxllama.checkpoint.staging import Staging
from jaxllama.cli import main
from jaxllama.errors import CheckpointError, InputError


class _Stopped(BaseException):
    """As an interrupt from the keyboard: no cleaning up."""


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A staging directory as an interrupted run leaves it, with some tensors in the journal."""
    monkeypatch.setattr(stream, "_FLUSH_BYTES", 1)
    seen = []

    def progress(*_):
        seen.append(None)
        if len(seen) == 10:
            raise _Stopped

    with pytest.raises(_Stopped):
        convert(tiny(), tmp_path / "out", to="hf", progress=progress)
    return tmp_path / ".out.partial"


def _refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["convert", "tiny", *map(str, arguments), "--quiet"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1, said
    return said


def _victims(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "precious").write_text("precious")
    return tmp_path / "victim" / "precious"


PARTS = (".", "journal.jsonl", "files", "files/config.json", "files/model.safetensors", "old-out")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["file", "directory", "dangling"])
def test_a_link_at_each_path_of_the_staging(tmp_path, capsys, part, kind):
    precious, root = _victims(tmp_path), tmp_path / ".out.partial"
    leads_to = {"file": precious, "directory": precious.parent, "dangling": tmp_path / "new"}[kind]
    place = root / part
    if part != ".":
        place.parent.mkdir(parents=True, exist_ok=True)
    root.chmod(0o700) if part != "." else None
    place.symlink_to(leads_to)
    said = _refused(capsys, tmp_path / "out", "--to", "hf")
    assert "is a symbolic link" in said and f"remove {root} and start again" in said
    assert precious.read_text() == "precious" and os.listdir(precious.parent) == ["precious"]
    assert place.is_symlink() and not (tmp_path / "new").exists()
    assert not (tmp_path / "out").exists()


def test_a_hard_link_to_the_journal(tmp_path, capsys):
    precious, root = _victims(tmp_path), tmp_path / ".out.partial"
    root.mkdir(0o700)
    os.link(precious, root / "journal.jsonl")
    assert "hard link" in _refused(capsys, tmp_path / "out", "--to", "hf")
    assert precious.read_text() == "precious"


@pytest.mark.parametrize(
    ("part", "mode"), [(".", 0o777), (".", 0o770), (".", 0o1777), ("files", 0o777)]
)
def test_a_folder_that_others_may_write_to(interrupted, capsys, part, mode):
    (interrupted / part).chmod(mode)
    if part != ".":
        interrupted.chmod(0o755)
    said = _refused(capsys, interrupted.parent / "out", "--to", "hf")
    assert f"can be written to by others (mode {mode:o})" in said
    assert (interrupted / "journal.jsonl").stat().st_size


@pytest.mark.parametrize("part", PARTS[:4])
def test_a_folder_of_another_user(interrupted, monkeypatch, part):
    real = os.lstat
    owner = os.geteuid() + 1

    def lstat(path, *arguments, **options):
        found = real(path, *arguments, **options)
        if str(path) != str(interrupted / part):
            return found
        return os.stat_result((*found[:4], owner, *found[5:]))

    monkeypatch.setattr(os, "lstat", lstat)
    monkeypatch.setattr("pathlib.Path.lstat", lambda path: lstat(str(path)))
    with pytest.raises(CheckpointError, match=f"belongs to another user .{owner}"):
        convert(tiny(), interrupted.parent / "out", to="hf")
    monkeypatch.undo()
    assert convert(tiny(), interrupted.parent / "out", to="hf").resumed == 10


def test_the_staging_is_its_owners_alone_and_the_target_is_not(tmp_path):
    before = os.umask(0o022)
    try:
        staging = Staging(tmp_path / "out", {}, overwrite=False)
        assert stat.S_IMODE(staging.root.stat().st_mode) == 0o700
        assert stat.S_IMODE((staging.root / "journal.jsonl").stat().st_mode) == 0o600
        staging.discard()
        convert("tiny", tmp_path / "out", to="hf")
        assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
        modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()}
        assert modes == {0o644}
    finally:
        os.umask(before)


@pytest.mark.parametrize("name", ["out", "out.gguf"])
@pytest.mark.parametrize("kind", ["file", "directory", "dangling", "itself"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_target_that_is_a_link_fails_at_once(tmp_path, monkeypatch, name, kind, overwrite):
    precious, target = _victims(tmp_path), tmp_path / name
    module = sys.modules["jaxllama.checkpoint.convert"]
    monkeypatch.setattr(module, "open_checkpoint", lambda *_, **__: 1 / 0)
    kinds = {"file": precious, "directory": precious.parent, "dangling": tmp_path / "new"}
    target.symlink_to(kinds.get(kind, target))
    with pytest.raises(CheckpointError, match=r"^[^:]+: is a symbolic link"):
        convert("tiny", target, to="gguf" if "." in name else "hf", overwrite=overwrite)
    assert target.is_symlink() and precious.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == sorted(["victim", name])


def test_an_adapter_follows_no_link(tmp_path):
    precious, source = _victims(tmp_path), tiny()
    import numpy as np

    name = "model.layers.0.self_attn.q_proj.weight"
    rows, columns = source.tensors[name].shape
    factors = {name: (np.ones((2, columns), np.float32), np.ones((rows, 2), np.float32))}

    def save(**options):
        save_lora(factors, source.config, tmp_path / "a", alpha=1, **options)

    (tmp_path / ".a.partial").symlink_to(precious.parent)
    with pytest.raises(CheckpointError, match="is a symbolic link"):
        save()
    (tmp_path / ".a.partial").unlink()
    save()
    (tmp_path / "a" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"not replaced \(notes.txt is none of its files\)"):
        save(overwrite=True)
    (tmp_path / "a" / "notes.txt").unlink()
    save(overwrite=True)
    assert precious.read_text() == "precious"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00 not text",
        b"not JSON\n",
        b"[1, 2]\n",
        b"null\n",
        b"[" * 100_000 + b"\n",
        b'{"name": "no.such.tensor", "nbytes": 4, "digest": "' + b"0" * 64 + b'", "lost": {}}\n',
        b'{"name": ["a"], "nbytes": 4}\n',
    ],
)
def test_garbage_in_the_journal_is_not_believed(interrupted, content):
    target, journal = interrupted.parent / "out", interrupted / "journal.jsonl"
    journal.write_bytes(content)  # in place of the plan
    assert convert(tiny(), target, to="hf").resumed == 0
    assert verify(tiny(), target).equal


@pytest.mark.parametrize(
    "change",
    [
        {"name": "no.such.tensor"},
        {"name": 3},
        {"name": ["model.norm.weight"]},
        {"nbytes": -1},
        {"nbytes": 1e400},
        {"nbytes": True},
        {"nbytes": None},
        {"digest": "0" * 63},
        {"digest": "Z" * 64},
        {"digest": 7},
        {"lost": {}},
        {"lost": None},
        {"lost": {"changed": "1", "size": 1, "largest": 0.0, "relative_rms": 0.0}},
        {"lost": {"changed": 0, "size": 1, "largest": 0.0, "relative_rms": 0.0, "more": 1}},
    ],
)
def test_a_wrong_entry_of_the_journal_is_not_believed(interrupted, change):
    target, journal = interrupted.parent / "out", interrupted / "journal.jsonl"
    lines = journal.read_text().split("\n")
    entry = json.loads(lines[3]) | change
    journal.write_text("\n".join([*lines[:3], json.dumps(entry), *lines[4:]]))
    assert convert(tiny(), target, to="hf").resumed == 0
    assert verify(tiny(), target).equal


@pytest.mark.parametrize("lines", [["[1]"], ["null"], ["{"], ['{"name": "model.norm.weight"}']])
def test_a_line_that_is_no_entry_is_not_believed(interrupted, lines):
    target, journal = interrupted.parent / "out", interrupted / "journal.jsonl"
    journal.write_text(journal.read_text() + "\n".join([*lines, ""]))
    assert convert(tiny(), target, to="hf").resumed == 0
    assert verify(tiny(), target).equal


@pytest.mark.parametrize("change", ["short", "gone", "long"])
def test_staged_files_of_another_length_start_over(interrupted, change):
    file = interrupted / "files" / "model.safetensors"
    if change == "gone":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size + (8 if change == "long" else -8))
    target = interrupted.parent / "out"
    assert convert(tiny(), target, to="hf").resumed == 0
    assert verify(tiny(), target).equal


@pytest.mark.parametrize("to", ["hf", "meta", "gguf", "orbax"])
def test_stopped_before_the_first_entry(tmp_path, to):
    def progress(*_):
        raise _Stopped

    with pytest.raises(_Stopped):
        convert(tiny(), tmp_path / "out", to=to, progress=progress)
    journal = tmp_path / ".out.partial" / "journal.jsonl"
    assert journal.read_text().count("\n") == 1  # the plan
    assert convert(tiny(), tmp_path / "out", to=to).resumed == 0
    assert verify(tiny(), tmp_path / "out").equal


def test_an_untouched_journal_is_believed(interrupted):
    assert convert(tiny(), interrupted.parent / "out", to="hf").resumed == 10


# At the limits as they are: 80 MB, killed when a part of it is in the journal.
DEFAULT_LIMIT = textwrap.dedent("""
    import os, signal, sys, time
    from pathlib import Path
    from jaxllama.checkpoint import convert

    journal, done = Path(sys.argv[1]).parent / ".out.partial" / "journal.jsonl", 0
    def progress(name, nbytes, total):
        global done
        done += nbytes
        if done > 0.7 * total:
            until = time.monotonic() + 30
            while journal.read_text().count("\\n") < 2 and time.monotonic() < until:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
    convert(sys.argv[2], sys.argv[1], to=sys.argv[3], progress=progress)
""")


@pytest.mark.parametrize("to", ["hf", "meta"])
def test_a_killed_conversion_resumes_at_the_default_limits(tmp_path, to):
    size = {"hidden_size": 768, "head_dim": 128, "intermediate_size": 4096, "num_hidden_layers": 2}
    source = convert(tiny(**size), tmp_path / "source", to="hf").target
    run = subprocess.run([sys.executable, "-c", DEFAULT_LIMIT, tmp_path / "out", source, to])
    assert run.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    assert convert(source, tmp_path / "out", to=to).resumed > 0
    assert verify(source, tmp_path / "out").equal


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_what_comes_to_lie_at_the_target_meanwhile_is_kept(tmp_path, to):
    target = tmp_path / ("out.gguf" if to == "gguf" else "out")

    def progress(*_):
        if to == "hf":
            target.mkdir(exist_ok=True)
        (target / "mine" if to == "hf" else target).write_text("x")

    for overwrite, error in ((False, CheckpointError), (True, InputError)):
        with pytest.raises(error, match="exists"):
            convert("tiny", target, to=to, overwrite=overwrite, progress=progress)
        mine = target / "mine" if to == "hf" else target
        assert mine.read_text() == "x" and os.listdir(tmp_path) == [target.name]
        mine.unlink()


@pytest.mark.parametrize(
    "files",
    [
        {"notes.gguf": "text"},
        {"out/config.json": '{"name": "a web page"}', "out/model.safetensors": "text"},
        {"out/config.json": '{"model_type": "llama"}', "out/model.safetensors": "text"},
        {"out/params.json": '{"dim": 8}', "out/consolidated.00.pth": "text"},
        {"out/model.gguf": "text"},
        {"out/model.gguf": "GGUF", "out/jaxllama_manifest.json": "{}"},
        {"out/config.json": '{"model_type": "llama"}', "out/arrays/mine": "text"},
        {"out/config.json": '{"model_type": "llama"}', "out/arrays/state/w/mine": "text"},
        {"out/config.json": '{"model_type": "llama"}', "out/arrays/state/w/zarr.json/a": "x"},
    ],
)
def test_files_that_are_only_called_like_a_checkpoints_are_kept(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    target = tmp_path / next(iter(files)).split("/")[0]
    to = "gguf" if target.suffix else "hf"
    with pytest.raises(InputError, match="so it is not replaced"):
        convert("tiny", target, to=to, overwrite=True)
    assert {name: (tmp_path / name).read_text() for name in files} == files


@pytest.mark.parametrize("name", ["README.md", ".gitattributes", "LICENSE", "mine.safetensors"])
@pytest.mark.parametrize("to", ["hf", "meta", "orbax", "gguf"])
def test_a_strangers_file_in_a_checkpoint_is_kept(tmp_path, name, to):
    convert("tiny", tmp_path / "out", to=to)
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(InputError, match=rf"\({name} is none of its files\)"):
        convert("tiny", tmp_path / "out", to=to, overwrite=True)
    (tmp_path / "out" / name).unlink()
    convert("tiny", tmp_path / "out", to=to, overwrite=True)


def test_a_strangers_manifest_beside_a_gguf_file_is_kept(tmp_path):
    manifest = tmp_path / "out.gguf.jaxllama_manifest.json"
    manifest.write_text("mine")
    with pytest.raises(CheckpointError, match=r"manifest.json: exists already"):
        convert("tiny", tmp_path / "out.gguf", to="gguf")
    with pytest.raises(InputError, match="a file of another kind"):
        convert("tiny", tmp_path / "out.gguf", to="gguf", overwrite=True)
    assert manifest.read_text() == "mine" and os.listdir(tmp_path) == [manifest.name]


@pytest.mark.parametrize("name", ["x" * 250, "x" * 300, "a\0b"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"too long|no usable name") as error:
        convert("tiny", tmp_path / name, to="hf")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_read_only_directory(tmp_path, monkeypatch):
    def read_only(*_, **__):
        import errno

        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", read_only)
    with pytest.raises(CheckpointError, match="Read-only file system; nothing is left of it"):
        convert("tiny", tmp_path / "out", to="hf")
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


TWO = textwrap.dedent("""
    import sys
    from jaxllama.checkpoint import convert, tiny
    from jaxllama.errors import JaxLlamaError
    source = tiny(num_hidden_layers=2)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        convert(source, sys.argv[1], to="hf")
    except JaxLlamaError as error:
        sys.exit("another process" in str(error) or "exists already" in str(error) or str(error))
""")


def test_writers_that_race(tmp_path):
    """One of them writes; the others are told of it, or that it is done."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", TWO, tmp_path / "out"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    codes = [writer.wait(60) for writer in writers]
    for writer in writers:
        writer.stdin.close(), writer.stdout.close()
    assert codes.count(0) == 1 and codes.count(1) == 2
    assert verify(tiny(num_hidden_layers=2), tmp_path / "out").equal
    assert os.listdir(tmp_path) == ["out"]
