"""Models fetched from a Hub on the loopback, into a cache that the library made."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from adapters import write_adapter
from hub_cache import files_below, put_model
from hub_server import HubServer, serving
from huggingface_hub import constants, file_download

import parity
from jaxllama import cli
from jaxllama.checkpoint import Checkpoint, convert, open_checkpoint, tiny, verify
from jaxllama.errors import CheckpointError
from parity.runner.readings import compare_readings
from parity.sources.open import open_source

FIRST = "model-00001-of-00002.safetensors"
NEEDED = [
    "config.json",
    "jaxllama_manifest.json",
    FIRST,
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture
def hub(files: Mapping[str, bytes], online: pytest.MonkeyPatch) -> Iterator[HubServer]:
    gated = {"org/gated": "Bearer good"}
    with serving(HubServer({"org/m": files, "org/gated": files}, gated)) as server:
        online.setenv("HF_ENDPOINT", server.url)
        yield server


def refusal(source: str) -> str:
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(source, quiet=True)
    said = str(error.value)
    assert "\n" not in said
    return said


def test_what_opens_it_is_fetched_and_nothing_else(
    hub: HubServer, model: Checkpoint, capfd: pytest.CaptureFixture[str]
):
    """Once: after that the cache is enough, without a request."""
    assert verify(model, open_checkpoint("org/m")).equal
    assert hub.fetched() == NEEDED
    assert "100%" in capfd.readouterr().err
    asked = len(hub.asked)
    assert verify(model, open_checkpoint("org/m")).equal
    assert len(hub.asked) == asked
    open_checkpoint("org/m@v1", quiet=True)
    assert hub.fetched() == NEEDED
    assert capfd.readouterr() == ("", "")


def test_what_the_cache_lacks_is_fetched(hub: HubServer, cache: Path, files: Mapping[str, bytes]):
    there = {name: files[name] for name in NEEDED if name != FIRST}
    put_model(cache, "org/m", there)
    open_checkpoint("org/m", quiet=True)
    assert FIRST in hub.fetched()


def test_a_cut_download_is_resumed(
    hub: HubServer, model: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)
    hub.cut = {FIRST: 100_000}
    assert verify(model, open_checkpoint("org/m", quiet=True)).equal
    ranges = [stated for method, path, stated in hub.asked if method == "GET" and FIRST in path]
    assert ranges == ["", "bytes=99840-"]


def test_a_connection_that_stays_away_is_one_error(
    hub: HubServer,
    model: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    """Of one that was cut all the files that are whole stay."""
    without_sleep = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    monkeypatch.setattr(file_download, "time", without_sleep)
    hub.cut, hub.dead = {FIRST: 1000}, True
    said = refusal("org/m")
    assert "org/m: is no path here, and cannot be fetched: " in said
    assert "run it again, or `hf download org/m --exclude 'original/*'`" in said
    assert capfd.readouterr() == ("", "")  # of dozens of attempts
    hub.dead = False
    asked = len(hub.asked)
    assert verify(model, open_checkpoint("org/m", quiet=True)).equal
    files = [
        path for method, path, _ in hub.asked[asked:] if method == "GET" and "/resolve/" in path
    ]
    assert 0 < len(files) < len(NEEDED)


def test_gated_models_are_said_as_such(
    hub: HubServer, model: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    page = f"{hub.url}/org/gated"
    assert refusal("org/gated") == (
        f"org/gated: is gated (401): ask for access at {page}, then set HF_TOKEN to a token of your"
        " account, or run `hf auth login`"
    )
    monkeypatch.setenv("HF_TOKEN", "bad")
    said = refusal("org/gated")
    assert "is gated, and the account of your token (HF_TOKEN" in said
    assert f"has no access (403): ask for it at {page}" in said
    monkeypatch.setenv("HF_TOKEN", "good")
    assert verify(model, open_checkpoint("org/gated", quiet=True)).equal


def test_unknown_names_and_revisions(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    said = refusal("org/unknown")
    assert "the Hub shows you no model of that name (401): misspelt, or private, which" in said
    assert "org/m@v9: has no revision 'v9' (404)" in refusal("org/m@v9")
    monkeypatch.setenv("HF_TOKEN", "good")
    assert "misspelt, or private to another account" in refusal("org/unknown")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (403, "without a token you are refused (403); set HF_TOKEN"),
        (404, "cannot be fetched: the Hub answers 404"),
        (429, "cannot be fetched: the Hub answers 429; try again later"),
        (500, "cannot be fetched: the Hub answers 500; try again later"),
    ],
)
def test_other_answers(hub: HubServer, status: int, said: str):
    hub.status = status
    assert said in refusal("org/m")


def test_what_is_forbidden_asks_nothing(hub: HubServer, online: pytest.MonkeyPatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        online.setenv(name, "yes")
        assert "forbids the network; unset it" in refusal("org/m")
        online.delenv(name)
    assert hub.asked == []
    open_checkpoint("org/m", quiet=True)
    assert hub.asked


def test_a_hub_that_is_not_there(online: pytest.MonkeyPatch):
    online.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be fetched: [Errno 111] Connection refused; run it again" in refusal("org/m")


def test_what_is_cached_outlives_the_hub(
    online: pytest.MonkeyPatch, cache: Path, files: Mapping[str, bytes]
):
    online.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    some = {name: files[name] for name in NEEDED if "tokenizer" not in name}
    put_model(cache, "org/m", some, tree=files)
    note = open_checkpoint("org/m", quiet=True).notes[0]
    assert note.startswith("what the Hub's cache has of org/m is read, which lacks tokenizer.json")


def test_a_cache_that_cannot_be_written_is_said(hub: HubServer, cache: Path):
    cache.parent.mkdir()
    cache.write_text("in its place")
    assert "cannot be written: " in refusal("org/m")


@pytest.mark.parametrize(
    ("has", "said"),
    [
        (["model.bin", "config.json"], "has no weights in a format that is read here"),
        (["arrays/d", "config.json"], "has no weights in a format that is read here"),
        (["a-Q4.gguf", "a-Q8.gguf"], "holds 2 GGUF files (a-Q4.gguf, a-Q8.gguf); fetch one"),
        (["model.safetensors", FIRST], "holds two sets of weights: model.safetensors, and 1 files"),
        (["model.safetensors"], "was fetched, but lacks config.json"),
    ],
)
def test_repositories_without_what_is_needed(hub: HubServer, has: list[str], said: str):
    hub.models["org/odd"] = dict.fromkeys(has, b"{}")
    assert said in refusal("org/odd")


def test_other_formats_are_fetched(hub: HubServer, tmp_path: Path, model: Checkpoint):
    convert(model, tmp_path / "meta", to="meta", shards=2)
    convert(model, tmp_path / "a.gguf", to="gguf")
    meta = {file.name: file.read_bytes() for file in (tmp_path / "meta").iterdir()}
    hub.models["org/meta"] = {**meta, "README.md": b""}
    hub.models["org/gguf"] = {"a.gguf": (tmp_path / "a.gguf").read_bytes(), "README.md": b""}
    convert(model, tmp_path / "orbax", to="orbax")
    hub.models["org/orbax"] = {**files_below(tmp_path / "orbax"), "README.md": b"", "x.gguf": b"x"}
    original = {name: hub.models["org/m"][name] for name in hub.models["org/m"] if "/" in name}
    hub.models["org/original"] = original
    for name in ("org/meta", "org/gguf", "org/original", "org/orbax", "org/m"):
        opened = open_checkpoint(name, quiet=True)
        assert verify(model, opened).equal
        assert opened.path is not None
        assert not compare_readings(opened, open_source(opened.path)).differences
    assert not {"README.md", "x.gguf"} & set(hub.fetched())


def test_the_commands_of_the_library_fetch_it(
    hub: HubServer, model: Checkpoint, tmp_path: Path, online: pytest.MonkeyPatch
):
    """Those that refusals name, typed as they say; what they fetch is found without a network."""
    convert(model, tmp_path / "a.gguf", to="gguf")
    packed = (tmp_path / "a.gguf").read_bytes()
    hub.models["org/several"] = {"a.gguf": packed, "b.gguf": packed}
    whole = hub.models["org/m"]
    hub.models["org/two"] = {**whole, "model.safetensors": b""}
    said = refusal("org/several")
    printed = type_command(re.findall(r"`(hf download [^`]+)`", said)[0])
    assert verify(model, open_checkpoint(printed[-1])).equal
    assert "fetch one of them by `hf download` and --include" in refusal("org/two")
    shards = "--include 'model-*' --include '*.json' --local-dir"
    type_command(f"hf download org/two {shards} {tmp_path / 'one'}")
    assert verify(model, open_checkpoint(tmp_path / "one")).equal
    online.setenv("HF_HUB_OFFLINE", "1")
    said = refusal("org/m")
    online.setenv("HF_HUB_OFFLINE", "0")
    type_command(re.findall(r"`(hf download [^`]+)`", said)[0])
    online.setenv("HF_HUB_OFFLINE", "1")
    assert verify(model, open_checkpoint("org/m")).equal


def type_command(command: str) -> list[str]:
    """Run a command of the library's, and return the words that it prints."""
    program = Path(sys.executable).parent / "hf"
    words = [str(program), *shlex.split(command)[1:]]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_commands_take_names(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(arguments))
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        return out

    assert "nothing lost" in run("convert", "org/m", str(tmp_path / "out"), "--to", "orbax")
    assert "models--org--m" in run("info", "org/m").replace("\n", "")
    assert run("verify", "org/m", str(tmp_path / "out")).startswith("equal")
    assert "is as its manifest says" in run("verify", "org/m", "--manifest")
    assert run("generate", "org/m", "ab", "--max-tokens", "2", "--quiet")


def test_an_interrupt_ends_a_download_at_once(hub: HubServer, tmp_path: Path):
    """Not when the file that is being fetched is there."""
    hub.stalled[FIRST] = threading.Event()
    words = [sys.executable, "-m", "jaxllama", "convert", "org/m", tmp_path / "out", "--to", "meta"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as run:
        try:
            while not any(how == "GET" and FIRST in path for how, path, _ in hub.asked):
                assert run.poll() is None
                time.sleep(0.05)
            run.send_signal(signal.SIGINT)
            assert run.wait(timeout=10) == 130
        finally:
            run.kill()
            hub.stalled[FIRST].set()
        assert run.stderr is not None
        assert "interrupted; nothing was written" in run.stderr.read()
    assert not (tmp_path / "out").exists()


def test_parity_reads_the_same_files_twice(hub: HubServer):
    """Its reference by a reader of its own, from the path that the name stood for."""
    result = parity.run("org/m", dtypes="f64", scenarios="causal", modes="free", length=7)
    assert result.exit_code == 0
    assert result.reading is not None


def test_an_adapter_is_fetched_by_name(hub: HubServer, tmp_path: Path):
    adapter = tmp_path / "adapter"
    write_adapter(adapter, tiny(num_hidden_layers=2), ["model.layers.1.self_attn.q_proj"])
    hub.models["org/lora"] = {file.name: file.read_bytes() for file in adapter.iterdir()}
    done = [
        convert("org/m", tmp_path / f"out{i}", to="hf", lora=lora)
        for i, lora in enumerate([adapter, "org/lora"])
    ]
    assert done[0].digests == done[1].digests
    assert done[0].digests != convert("org/m", tmp_path / "plain", to="hf").digests
    assert "it is a LoRA adapter: give the base model" in refusal("org/lora")


def test_the_library_is_loaded_for_a_download_alone():
    code = "import sys, jaxllama.checkpoint; print('huggingface_hub' in sys.modules)"
    found: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "False"
