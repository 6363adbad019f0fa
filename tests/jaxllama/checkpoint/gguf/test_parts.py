"""GGUF models in several files: as llama.cpp's writer splits them, as ours does, and spoilt."""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from written_checkpoints import model, weights_of, write_gguf

from jaxllama.checkpoint import check_manifest, convert, open_checkpoint, tiny, verify
from jaxllama.errors import CheckpointError, InputError
from parity.runner.readings import compare_readings
from parity.sources.open import open_source


@pytest.fixture(scope="module")
def small():
    return tiny(num_hidden_layers=1)


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory) -> Path:
    return convert(small, tmp_path_factory.mktemp("parts") / "whole", to="gguf", shards=3).target


@pytest.fixture
def split(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "split"))


def part(number: int, count: int = 3, name: str = "model") -> str:
    return f"{name}-{number:05}-of-{count:05}.gguf"


@pytest.mark.parametrize("shards", [1, 2, 3, 99])
def test_parts_of_ours_are_read_by_any_of_them(shards, small, tmp_path):
    out = convert(small, tmp_path / "out", to="gguf", shards=shards).target
    files = sorted(out.glob("*.gguf"))
    expected = min(shards, len(small.tensors) + 1)  # and the divisors of the frequencies
    assert len(files) == expected or shards == 99
    assert [f.name for f in files] == [part(i + 1, len(files)) for i in range(len(files))]
    for path in (out, *files[:1], *files[-1:]):
        assert verify(small, path).equal
        check_manifest(open_checkpoint(path))
    convert(small, out, to="gguf", overwrite=True)  # what is replaced is a checkpoint and no more
    assert [f.name for f in out.glob("*.gguf")] == ["model.gguf"]


def test_keys_are_those_of_llama_cpps_writer(small, tmp_path):
    """To the type: llama.cpp reads a number of another width not at all."""
    theirs = write_gguf(small, tmp_path / "theirs" / "model.gguf", split_max_tensors=9)
    ours = convert(small, tmp_path / "ours", to="gguf", shards=2).target
    for number in (1, 2):
        keys = []
        for directory in (theirs.parent, ours):
            reader = gguf.GGUFReader(directory / part(number, 2))
            keys.append(
                {k: (v.types, v.contents()) for k, v in reader.fields.items() if "split." in k}
            )
        assert len(keys[0]) == 3
        assert keys[0] == keys[1]


@pytest.mark.parametrize("first_is_empty", [False, True])
def test_parts_of_llama_cpps_writer(first_is_empty, tmp_path):
    checkpoint = model()
    path = write_gguf(
        checkpoint,
        tmp_path / "a" / "model.gguf",
        split_max_tensors=8,
        small_first_shard=first_is_empty,
    )
    files = sorted(path.parent.glob("*.gguf"))
    assert len(files) == 3 + first_is_empty
    assert (len(gguf.GGUFReader(files[0]).tensors) == 0) == first_is_empty
    opened, source = open_checkpoint(path.parent), open_source(files[-1])
    assert not compare_readings(opened, source).differences
    for name, weight in weights_of(checkpoint).items():
        if "gate_proj" not in name:  # which is quantised
            assert np.array_equal(opened.read(name), weight)
    at = source.place("lm_head.weight")
    assert at == f"{files[-1].name}: output.weight"
    assert convert(files[1], tmp_path / "hf", to="hf").target.exists()


def drop(*numbers: int) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        for number in numbers:
            (path / part(number)).unlink()

    return edit


def copy(source: str, target: str) -> Callable[[Path], None]:
    return lambda path: shutil.copy(path / source, path / target) and None


def set_number(key: str, layout: str, value: int, number: int) -> Callable[[Path], None]:
    """Return an edit of a number in a part's keys."""

    def edit(path: Path) -> None:
        file = path / part(number)
        raw = bytearray(file.read_bytes())
        struct.pack_into(layout, raw, raw.index(key.encode()) + len(key) + 4, value)
        file.write_bytes(raw)

    return edit


def of_another_model(path: Path) -> None:
    other = tiny(num_hidden_layers=2)
    target = convert(other, path.parent / "other", to="gguf", shards=3).target
    shutil.copy(target / part(2), path / part(2))


def with_keys_of_another(path: Path) -> None:
    """A part that says what model it is of, as other splitters may write."""
    reader = gguf.GGUFReader(path / part(2))
    writer = gguf.GGUFWriter(path / "new", "llama")
    writer.add_rope_freq_base(5.0)
    for key, add in (("no", writer.add_uint16), ("count", writer.add_uint16)):
        add(f"split.{key}", reader.fields[f"split.{key}"].contents())
    writer.add_int32("split.tensors.count", reader.fields["split.tensors.count"].contents())
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(path / "new", path / part(2))


SPOILT = {
    "the second is missing": (drop(2), "1 of the model's 3 parts are missing.*00002-of-00003"),
    "the first is missing": (drop(1), "1 of the model's 3 parts are missing.*00001-of-00003"),
    "two are missing": (drop(1, 3), "2 of the model's 3 parts are missing"),
    "one too many": (copy(part(3), part(4)), "00004-of-00003.gguf lies beside.*no such part of 3"),
    "one before the first": (copy(part(3), part(0)), "no such part of 3"),
    "one twice": (copy(part(3), part(2)), "split.no is 2, expected 1"),
    "another count": (set_number("split.count", "<H", 4, 2), "split.count is 4, expected 3"),
    "another total": (
        set_number("split.tensors.count", "<i", 99, 3),
        "split.tensors.count is not as in model-00001-of-00003.gguf",
    ),
    "no such total": (
        lambda path: [set_number("split.tensors.count", "<i", 99, n)(path) for n in (1, 2, 3)],
        "split.tensors.count is 99, but the parts have 13 tensors",
    ),
    "two models": (of_another_model, "they are of two models"),
    "other keys": (with_keys_of_another, "llama.rope.freq_base is not as in .* two models"),
    "renamed": (
        lambda path: (path / part(1)).rename(path / part(1, 2)),
        "by its name it is part 1 of 2, by split.count one of 3|holds 2 GGUF files",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_does_not_fit_is_one_clear_error(how, split):
    spoil, said = SPOILT[how]
    assert open_checkpoint(split).format == "gguf"
    spoil(split)
    for path in (split, sorted(split.glob("*.gguf"))[0]):
        with pytest.raises(CheckpointError) as error:
            open_checkpoint(path)
        message = str(error.value)
        assert re.search(said, message, re.S), message
        assert len(message.splitlines()) <= 12


def test_a_part_with_a_name_of_its_own(split):
    (split / part(1)).rename(split.parent / "my.gguf")
    with pytest.raises(
        CheckpointError, match=r"by its name it is no part, by split.count one of 3"
    ):
        open_checkpoint(split.parent / "my.gguf")


def test_a_whole_model_that_is_called_a_part(small, tmp_path):
    path = convert(small, tmp_path / "a.gguf", to="gguf").target
    one = path.rename(tmp_path / part(1, 1))
    assert verify(small, one).equal
    two = one.rename(tmp_path / part(1, 2))
    with pytest.raises(CheckpointError, match=r"part 1 of 2, by split.count one of 0"):
        open_checkpoint(two)


def test_two_models_in_one_directory(split, small):
    convert(small, split / "other.gguf", to="gguf")
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF files \(model-00001.*other.gguf"):
        open_checkpoint(split)
    assert open_checkpoint(split / part(3)).format == "gguf"


def test_several_files_need_a_directory(small, tmp_path):
    with pytest.raises(InputError, match="2 files need a directory"):
        convert(small, tmp_path / "a.gguf", to="gguf", shards=2)
    assert not list(tmp_path.iterdir())


def test_a_directory_with_other_files_is_not_replaced(split, small):
    (split / "mine.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="is not replaced"):
        convert(small, split, to="gguf", overwrite=True)
