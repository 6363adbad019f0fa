"""Names of the Hub and its cache: what is there is read without the library or a network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hub_cache import COMMIT, files_below, put_model
from huggingface_hub import utils
from hypothesis import given
from hypothesis import strategies as st

from jaxllama.checkpoint import Checkpoint, convert, open_checkpoint, verify
from jaxllama.checkpoint.hub.cache import cache_directory
from jaxllama.checkpoint.hub.name import HubName, parse_name
from jaxllama.errors import CheckpointError
from parity.runner.readings import compare_readings
from parity.sources.open import open_source

ORIGINAL = "original/"


def without(files: Mapping[str, bytes], *left: str) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not name.startswith(left)}


def refusal(source: str) -> str:
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(source)
    said = str(error.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("meta-llama/Llama-3.2-1B", HubName("meta-llama/Llama-3.2-1B")),
        ("org/m@v1.0", HubName("org/m", "v1.0")),
        ("org/m@refs/pr/3", HubName("org/m", "refs/pr/3")),
        ("_1/a.b_c-D", HubName("_1/a.b_c-D")),
    ],
)
def test_a_name(text: str, name: HubName):
    assert parse_name(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "model",
            "./org/model",
            "/org/model",
            "~/model",
            "org/",
            "a/b/c",
            "../model",
            "a b/c",
        ),
        *("org/model.gguf", "org/config.json", "org/mo--del", "org/mo..del", "-org/m", "org/m."),
        *(
            "org/m@",
            "org/m@../x",
            "org/m@a..b",
            "org/m@/x",
            "org/m@x y",
            f"org/{'x' * 97}",
            "a/b\n",
        ),
    ],
)
def test_a_path(text: str):
    assert parse_name(text) is None


@given(st.text("ab1._-/", min_size=1, max_size=12))
def test_names_are_those_that_the_library_takes(text: str):
    """But those of one part, which stand for paths here, and of files."""
    name = parse_name(text)
    try:
        utils.validate_repo_id(text)
    except utils.HFValidationError:
        assert name is None
    else:
        assert (name is not None) == ("/" in text)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XDG_CACHE_HOME": "/xdg"},
        {"HF_HOME": "/home"},
        {"HF_HOME": "~/home"},
        {"HF_HOME": "/home", "HUGGINGFACE_HUB_CACHE": "/old"},
        {"HF_HOME": "/home", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "$HOME/new"},
    ],
)
def test_the_cache_is_where_the_library_has_it(
    variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
):
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    library = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert str(cache_directory()) == library.stdout.strip()


def test_what_is_cached_is_read(
    cache: Path, model: Checkpoint, files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    """By branch, tag and commit, and without the library."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    snapshot = put_model(cache, "org/m", without(files, ORIGINAL))
    put_model(cache, "org/m", {}, revision="refs/pr/3")
    for name in ("org/m", "org/m@main", "org/m@refs/pr/3", f"org/m@{COMMIT}"):
        opened = open_checkpoint(name)
        assert opened.path == snapshot
        assert verify(model, opened).equal
    assert not any("cache" in note for note in opened.notes)
    assert opened.tokenizer().encode("ab") == model.tokenizer().encode("ab")


def test_what_is_cached_in_metas_format_is_read(
    cache: Path, model: Checkpoint, files: Mapping[str, bytes]
):
    """Where it lies as Meta publishes it, links out of a folder of the snapshot's own."""
    only = {name: content for name, content in files.items() if name.startswith(ORIGINAL)}
    snapshot = put_model(cache, "org/m", only)
    opened = open_checkpoint("org/m")
    assert (opened.path, opened.format) == (snapshot / "original", "meta")
    assert verify(model, opened).equal
    assert open_checkpoint(str(snapshot / "original")).format == "meta"


def test_links_that_leave_the_models_folder_are_refused(cache: Path, files: Mapping[str, bytes]):
    snapshot = put_model(cache, "org/m", without(files, ORIGINAL))
    other = put_model(cache, "org/other", without(files, ORIGINAL))
    link = snapshot / "config.json"
    link.unlink()
    link.symlink_to((other / "config.json").resolve())
    assert "lies outside the directory" in refusal("org/m")


def test_a_path_of_that_name_wins(
    cache: Path, tmp_path: Path, model: Checkpoint, files: Mapping[str, bytes]
):
    convert(model, tmp_path / "org" / "m", to="hf", dtype="bfloat16")
    opened = open_checkpoint("org/m")
    assert opened.path == Path("org/m")
    assert opened.notes == ()
    snapshot = put_model(cache, "org/m", without(files, ORIGINAL))
    opened = open_checkpoint("org/m")
    assert opened.path == Path("org/m")
    assert opened.notes == (
        "org/m is a path here, which is read; the model of that name in the Hub's cache is "
        f"{snapshot}",
    )
    assert open_checkpoint("org/m@main").path == snapshot
    # As a path it is no name, and nothing is shadowed.
    assert open_checkpoint(Path("org/m")).notes == ()


def test_what_is_not_there_is_one_error_with_the_command(
    cache: Path, monkeypatch: pytest.MonkeyPatch
):
    said = refusal("org/m@v1")
    assert said == (
        "org/m@v1: is no file or directory here, and no model of that name is in the Hub's cache "
        f"({cache}); `hf download org/m --revision v1 --exclude 'original/*'` fetches it where "
        "there is a network; HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids the network; unset it"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refusal("org/m").endswith("; `pip install 'jaxllama[hub]'` lets this command fetch it")
    assert "does not exist; give a directory, a file, a model's name" in refusal("./org/m")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(Path("org/m"))


@pytest.mark.parametrize(
    "lost", ["model-00002-of-00002.safetensors", "config.json", "model.safetensors.index.json"]
)
def test_what_is_cached_in_part_is_said(cache: Path, files: Mapping[str, bytes], lost: str):
    put_model(cache, "org/m", without(files, ORIGINAL, lost, "pytorch"))
    said = refusal("org/m")
    assert f"the model is not whole in the Hub's cache ({cache}), which lacks {lost}" in said


def test_a_link_whose_blob_is_gone_is_not_there(cache: Path, files: Mapping[str, bytes]):
    snapshot = put_model(cache, "org/m", without(files, ORIGINAL))
    (snapshot / "config.json").resolve().unlink()
    assert "which lacks config.json" in refusal("org/m")


def test_without_the_tokenizer_the_weights_are_read(cache: Path, files: Mapping[str, bytes]):
    """Where the cache knows what there is, what is missing is said."""
    some = without(files, ORIGINAL, "tokenizer")
    put_model(cache, "org/m", some, tree=files)
    opened = open_checkpoint("org/m")
    assert "of org/m is read, which lacks tokenizer.json, tokenizer_config.json" in opened.notes[0]
    put_model(cache, "org/n", some)
    assert open_checkpoint("org/n").notes == (
        "other weights are not read: pytorch_model.bin; "
        "model-00001-of-00002.safetensors and its like are",
    )


def test_ranks_that_are_missing_are_known_from_the_tree(
    cache: Path, tmp_path: Path, model: Checkpoint
):
    convert(model, tmp_path / "meta", to="meta", shards=2)
    files = {file.name: file.read_bytes() for file in (tmp_path / "meta").iterdir()}
    put_model(cache, "org/m", without(files, "consolidated.01"), tree=files)
    assert "which lacks consolidated.01.pth;" in refusal("org/m")


def test_gguf_is_read_where_it_is_one_file(cache: Path, tmp_path: Path, model: Checkpoint):
    convert(model, tmp_path / "a.gguf", to="gguf")
    content = (tmp_path / "a.gguf").read_bytes()
    put_model(cache, "org/m", {"a.gguf": content}, tree=["a.gguf", "b.gguf"])
    assert verify(model, open_checkpoint("org/m")).equal
    put_model(cache, "org/n", {"a.gguf": content, "b.gguf": content})
    assert "`hf download org/n a.gguf`, and give the path that it prints" in refusal("org/n")


@pytest.fixture(scope="module")
def orbax(model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    made = tmp_path_factory.mktemp("orbax") / "made"
    return files_below(convert(model, made, to="orbax").target)


HEAD = "arrays/state/lm_head.weight/"


def test_an_orbax_directory_is_read_through_its_links(
    cache: Path, model: Checkpoint, orbax: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    snapshot = put_model(cache, "org/m", orbax, tree=orbax)
    opened = open_checkpoint("org/m")
    assert (opened.path, opened.format, opened.notes) == (snapshot, "orbax", ())
    assert verify(model, opened).equal
    assert not compare_readings(opened, open_source(snapshot)).differences
    assert open_checkpoint("org/m").tokenizer().encode("ab") == model.tokenizer().encode("ab")
    link = snapshot / HEAD / "c" / "0" / "0"
    blob = link.resolve()
    other = snapshot.parents[2] / "elsewhere"
    other.write_bytes(blob.read_bytes())
    link.unlink()
    link.symlink_to(other)
    assert "lies outside the directory" in refusal("org/m")
    link.unlink()
    link.symlink_to(blob.parent)  # of a directory, or of nothing
    assert "is a symbolic link" in refusal(str(snapshot))


@pytest.mark.parametrize("lost", ["config.json", f"{HEAD}zarr.json", "arrays/state/_METADATA"])
def test_an_orbax_directory_in_part_is_said(cache: Path, orbax: Mapping[str, bytes], lost: str):
    """What describes arrays is known to be missing; their parts where the cache knows the tree."""
    put_model(cache, "org/m", without(orbax, lost))
    known = "weights" if lost.endswith("_METADATA") else lost
    assert f"which lacks {known};" in refusal("org/m")
    put_model(cache, "org/n", without(orbax, f"{HEAD}c/"), tree=orbax)
    assert f"which lacks {HEAD}c/0/0" in refusal("org/n")


@pytest.mark.parametrize("stated", ["../../../elsewhere", "", ".", "/etc"])
def test_a_reference_that_is_no_commit_leads_nowhere(
    cache: Path, files: Mapping[str, bytes], stated: str
):
    put_model(cache, "org/m", without(files, ORIGINAL))
    (cache / "models--org--m" / "refs" / "main").write_text(stated)
    assert "no model of that name is in the Hub's cache" in refusal("org/m")


def test_a_cache_that_cannot_be_read_is_said(cache: Path, files: Mapping[str, bytes]):
    put_model(cache, "org/m", {})
    reference = cache / "models--org--m" / "refs" / "main"
    reference.unlink()
    os.symlink("main", reference)  # to itself
    assert "org/m: is no file" in refusal("org/m")
