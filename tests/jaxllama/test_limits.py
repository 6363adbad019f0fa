"""What is beyond a limit is refused early and in words that say it; what is below is not."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import field_files as ff
import numpy as np
import pytest
import token_files
import torch
from adapters import write_adapter

from jaxllama import files
from jaxllama.checkpoint import convert, open_checkpoint, validate
from jaxllama.checkpoint.checks import all_value_problems
from jaxllama.checkpoint.lora import merge_lora
from jaxllama.errors import CheckpointError, ConfigError
from jaxllama.files import limits
from jaxllama.sandbox import process
from jaxllama.tokenizer import Tokenizer

HUGE = 2**40


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    work = tmp_path_factory.mktemp("whole")
    made = {to: ff.write(ff.sound(), work / to, to) for to in ("hf", "meta", "orbax")}
    return {**made, "gguf": ff.write(ff.sound(), work / "model.gguf", "gguf")}


def copied(path: Path, to: Path) -> Path:
    return Path((shutil.copytree if path.is_dir() else shutil.copy)(path, to))


def set_header(file: Path, tensors: dict[str, list[int]]) -> None:
    """Write a safetensors file of these names and shapes, without data."""
    end, header = 0, {}
    for name, shape in tensors.items():
        nbytes = 4 * int(np.prod(np.array(shape, object)))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    with file.open("r+b") as opened:
        opened.truncate(8 + len(text) + min(end, 1 << 30))


def gguf_head(tensors: int, keys: int, then: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + then + bytes(40 * max(tensors, keys))


def array_of(item: int, count: int) -> bytes:
    return struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, item, count)


def many_names(count: int) -> dict[str, list[int]]:
    return {f"a{i}": [1] for i in range(count)}


def to_state(directory: Path, state: Any, **options: Any) -> None:
    torch.save(state, directory / "consolidated.00.pth", **options)


def tree(directory: Path, count: int) -> None:
    file = directory / "arrays" / "state" / "_METADATA"
    content = json.loads(file.read_text())
    entry = next(iter(content["tree_metadata"].values()))
    content["tree_metadata"] = {
        str(i): {**entry, "key_metadata": [{"key": f"a{i}", "key_type": 2}]} for i in range(count)
    }
    file.write_text(json.dumps(content))


def index(directory: Path, names: int, shards: int) -> None:
    (directory / ff.WEIGHTS).unlink()
    places = {f"a{i}": f"s{i % shards}.safetensors" for i in range(names)}
    (directory / ff.INDEX).write_text(json.dumps({"weight_map": places}))


TOO_MANY: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "config keys": (
        "hf",
        lambda p: (p / ff.CONFIG).write_text("{" + '"a":1,' * 60_000 + '"b":1}'),
        "key 'a' occurs twice",
    ),
    "config entries": (
        "hf",
        lambda p: (p / ff.CONFIG).write_text('{"a": [' + "0," * 1_999_999 + "0" * 9 + "]}"),
        "at most|not valid JSON",
    ),
    "config depth": (
        "hf",
        lambda p: (p / ff.CONFIG).write_text('{"a": ' + "[" * 65 + "]" * 65 + "}"),
        "nested too deep, at most 64 levels",
    ),
    "config length": (
        "hf",
        lambda p: (p / ff.CONFIG).write_text(" " * (4 << 20) + "{}"),
        "4194306 bytes, at most 4194304",
    ),
    "tensors": (
        "hf",
        lambda p: set_header(p / ff.WEIGHTS, many_names(20_001)),
        "20001 tensors, at most 20000",
    ),
    "index": ("hf", lambda p: index(p, 20_001, 2), "20001 tensors, at most 20000"),
    "shards": ("hf", lambda p: index(p, 2_001, 2_001), "2001 files, at most 2000"),
    "name": (
        "hf",
        lambda p: set_header(p / ff.WEIGHTS, {"a." * 251: [1]}),
        "name of 502 characters, at most 500",
    ),
    "half a character": ("hf", lambda p: set_header(p / ff.WEIGHTS, {"a\ud800": [1]}), "half a"),
    "no elements": (
        "hf",
        lambda p: set_header(p / ff.WEIGHTS, {"a": [0, HUGE]}),
        "has no elements",
    ),
    "gguf tensors": (
        "gguf",
        lambda p: p.write_bytes(gguf_head(20_001, 0)),
        "count of tensors is 20001, at most 20000",
    ),
    "gguf keys": (
        "gguf",
        lambda p: p.write_bytes(gguf_head(0, 10_001)),
        "metadata keys is 10001, at most 10000",
    ),
    "gguf strings": (
        "gguf",
        lambda p: p.write_bytes(gguf_head(0, 1, array_of(8, 4_000_001)) + bytes(33_000_000)),
        "is 4000001, at most 4000000",
    ),
    "gguf numbers": (
        "gguf",
        lambda p: p.write_bytes(gguf_head(0, 1, array_of(0, 4_000_001)) + bytes(5_000_000)),
        "is 4000001, at most 4000000",
    ),
    "gguf zero": (
        "gguf",
        lambda p: p.write_bytes(
            gguf_head(1, 0, struct.pack("<Q", 17) + b"rope_freqs.weight")[:-40]
            + struct.pack("<IQQIQ", 2, 0, 2**62, 2, 0)
            + bytes(64)
        ),
        r"shape \(4611686018427387904, 0\), expected dimensions in 1\.\.",
    ),
    "state": (
        "meta",
        lambda p: to_state(p, {f"a{i}": torch.zeros(1) for i in range(20_001)}),
        "at most 2[01]000",
    ),
    "state zero": ("meta", lambda p: to_state(p, {"a": torch.empty(0, HUGE)}), "expected dimens"),
    "orbax": ("orbax", lambda p: tree(p, 20_001), "20001 tensors, at most 20000"),
}


@pytest.mark.parametrize("kind", TOO_MANY)
def test_too_much_is_refused_early(kind: str, whole: dict[str, Path], tmp_path: Path) -> None:
    form, spoil, said = TOO_MANY[kind]
    place = copied(whole[form], tmp_path / ("model.gguf" if form == "gguf" else "spoilt"))
    spoil(place)
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(place)
    assert time.perf_counter() - began < 10


def test_what_is_below_a_limit_is_read(
    whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits bite where they are set: at the count itself, and one below it."""
    for form, path in whole.items():
        count = len(open_checkpoint(path).tensors) + (form == "gguf")  # and rope_freqs
        monkeypatch.setattr(limits, "TENSORS", count)
        open_checkpoint(path)
        monkeypatch.setattr(limits, "TENSORS", count - 1)
        with pytest.raises(CheckpointError, match=f"at most {count - 1}"):
            open_checkpoint(path)
        monkeypatch.undo()


@pytest.mark.parametrize("codecs", ["ours", "plain"])
@pytest.mark.parametrize("shape", [[HUGE], [2**31 - 1, 2**31 - 1], [2**33], [0], [-1]])
@pytest.mark.parametrize("of", ["shape", "chunk", "both"])
def test_a_shape_that_fills_the_memory(
    of: str, shape: list[int], codecs: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    """TensorStore would end the process."""
    place = copied(whole["orbax"], tmp_path / "spoilt")
    file = place / "arrays" / "state" / "model.norm.weight" / "zarr.json"
    content = json.loads(file.read_text())
    if of != "chunk":
        content["shape"] = shape
    if of != "shape":
        content["chunk_grid"]["configuration"]["chunk_shape"] = shape
        if codecs == "ours":
            content["codecs"][0]["configuration"]["chunk_shape"] = shape
    if codecs == "plain":
        content["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"damaged or not complete|expected \(32,\)"):
        validate(open_checkpoint(place))


@pytest.mark.parametrize("form", ["hf", "meta", "orbax"])
@pytest.mark.parametrize("size", [2**31 - 1, HUGE, 10**400])
def test_sizes_of_a_configuration_alone_allocate_nothing(
    form: str, size: int, whole: dict[str, Path], tmp_path: Path
) -> None:
    place = copied(whole[form], tmp_path / "spoilt")
    file, names = place / "config.json", ["vocab_size", "hidden_size", "num_hidden_layers"]
    if form == "meta":
        file, names = place / "params.json", ["vocab_size", "dim", "n_layers", "multiple_of"]
    for name in names:
        content = file.read_text()
        ff.edit(file, **{name: size})
        with pytest.raises((CheckpointError, ConfigError)) as caught:
            validate(open_checkpoint(place))
        assert len(str(caught.value)) < 6000
        file.write_text(content)


def test_nothing_known_to_be_wrong_is_read(whole: dict[str, Path], tmp_path: Path) -> None:
    place = copied(whole["hf"], tmp_path / "spoilt")
    ff.edit(place / ff.CONFIG, vocab_size=1000)
    checkpoint = open_checkpoint(place)
    read: list[str] = []
    object.__setattr__(checkpoint, "reader", lambda name: read.append(name) or np.zeros(1))
    all_value_problems(checkpoint)
    assert read and not {"model.embed_tokens.weight", "lm_head.weight"} & set(read)


HOSTILE = ["(.*a|.*)*$", "(((((a?){99}){99}){99}){99})x", "(\\w+)+!$"]


@pytest.mark.parametrize("field", ["target_modules", "rank_pattern", "modules_to_save"])
@pytest.mark.parametrize("expression", [*HOSTILE, "(", "(" * 2000])
def test_expressions_of_adapters(
    field: str, expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either it is matched in time, or the adapter is refused; nothing hangs."""
    tight = process.SandboxProcess(seconds=1, nbytes=200 << 20)
    monkeypatch.setattr(process, "_the_process", tight)
    base, module = ff.sound(), "model.layers.0.self_attn.q_proj"
    value = {expression: 3} if field == "rank_pattern" else expression
    value = [expression] if field == "modules_to_save" else value
    write_adapter(tmp_path / "adapter", base, [module], **{field: value})
    began = time.perf_counter()
    with suppress(CheckpointError):
        merge_lora(base, tmp_path / "adapter")
    assert time.perf_counter() - began < 10
    tight.end()


def test_an_expression_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tight = process.SandboxProcess(seconds=1, nbytes=200 << 20)
    monkeypatch.setattr(process, "_the_process", tight)
    base, module = ff.sound(), "model.layers.0.self_attn.q_proj"
    write_adapter(tmp_path / "adapter", base, [module], target_modules="(\\w+\\.?)+!")
    with pytest.raises(CheckpointError, match="takes more than 1 seconds"):
        merge_lora(base, tmp_path / "adapter")
    tight.end()


def replacing(pattern: dict[str, str], content: str, times: int) -> dict[str, Any]:
    rule = {"type": "Replace", "pattern": pattern, "content": content}
    return {"type": "Sequence", "normalizers": [rule] * times}


@pytest.mark.parametrize(
    ("rules", "fits"),
    [
        (replacing({"String": " "}, "▁", 9), True),
        (replacing({"String": "a"}, "a" * 10, 4), True),
        (replacing({"String": "a"}, "a" * 10, 5), False),
        (replacing({"Regex": "."}, "a" * 9, 5), False),
        (replacing({"String": ""}, "ab", 9), False),
        ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}, True),
        ({"type": "Sequence", "normalizers": [{"type": "NFKC"}] * 4}, False),
    ],
)
def test_rules_that_make_a_text_longer(rules: dict[str, Any], fits: bool, tmp_path: Path) -> None:
    """The library would take all memory, and end the process."""
    content = token_files.tokenizer_json(normalizer=rules)
    place = token_files.write_tokenizer(tmp_path, tokenizer_json=content)
    if fits:
        Tokenizer.from_directory(place).encode("a b")
    else:
        with pytest.raises(CheckpointError, match="its normalizer can make a text more than 10000"):
            Tokenizer.from_directory(place)


def test_names_that_no_target_can_have(whole: dict[str, Path], tmp_path: Path) -> None:
    for name in ("x" * 250, "x" * 300, "a\0b", "a\ud800b"):
        with pytest.raises(CheckpointError, match=r"too long|no usable name"):
            convert(whole["hf"], tmp_path / name, to="hf")
    with pytest.raises(CheckpointError, match="too long: with what is written beside it"):
        convert(whole["hf"], tmp_path / ("x" * 235 + ".gguf"), to="gguf")
    assert not list(tmp_path.iterdir())
    convert(whole["hf"], tmp_path / ("x" * 240), to="hf")


def test_every_limit_stands_where_it_is_said() -> None:
    """No reader has a limit of its own beside those of one module."""
    assert all(isinstance(value, int) for name, value in vars(limits).items() if name.isupper())
    with pytest.raises(CheckpointError, match=str(limits.JSON_ENTRIES)):
        files.parse_object(b'{"a": [' + b"," * limits.JSON_ENTRIES + b"]}", "here")
