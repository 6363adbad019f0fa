"""Keys of a GGUF file that hold another type than they ought to are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import field_files as ff
import fuzz_families
import numpy as np
import pytest

from jaxllama.checkpoint import open_checkpoint
from jaxllama.checkpoint.gguf.file import read_head
from jaxllama.errors import CheckpointError, ConfigError

TYPED: dict[str, list[Any]] = {
    "tokenizer.ggml.model": [True, 7, np.zeros(3, np.int32), ["gpt2"]],
    "tokenizer.ggml.pre": [True, 7, np.zeros(3, np.int32), ["smollm"]],
    "tokenizer.ggml.tokens": ["x", 7, np.arange(9, dtype=np.int32)],
    "tokenizer.ggml.token_type": ["x", ["1"], np.ones(300, np.float32), 3],
    "tokenizer.ggml.merges": ["a b", 7, np.arange(9, dtype=np.int32)],
    "tokenizer.ggml.add_bos_token": ["false", 0, 1.0, np.array([True])],
    "tokenizer.ggml.bos_token_id": ["1", 0.5, True, np.arange(2, dtype=np.int32)],
    "tokenizer.chat_template": [7, True, ["{{ x }}"], np.zeros(0, np.int32)],
    "llama.context_length": ["8", 0.5, np.arange(2, dtype=np.int32)],
    "llama.rope.freq_base": ["8", np.arange(2, dtype=np.int32), True],
    "general.alignment": [True, "32", 0, 3, 0.5],
    "jaxllama.widened": [7, "model.norm.weight=bfloat16", np.zeros(3, np.int32)],
    "jaxllama.config_json": [7, ["{}"], "[]", "{"],
    "jaxllama.rope.scaling.low_freq_factor": ["x", ["y"], np.zeros(3, np.int32)],
    "split.count": ["2", 0.5, ["x"]],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ff.write(ff.sound(), tmp_path_factory.mktemp("whole") / "model.gguf", "gguf")


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k, values in TYPED.items() for v in values], ids=str
)
def test_a_value_of_another_type(key: str, value: Any, whole: Path, tmp_path: Path) -> None:
    head, data, file = read_head(whole), whole.read_bytes(), tmp_path / "model.gguf"
    first = min(tensor.offset for tensor in head.tensors.values())
    metadata = {**head.metadata, key: value}
    file.write_bytes(fuzz_families.gguf_bytes(metadata, head.tensors, first) + data[first:])
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        open_checkpoint(file).tokenizer()
    said = str(caught.value)
    assert key.rpartition(".")[2] in said or "JSON" in said, said


def test_the_same_values_are_read(whole: Path, tmp_path: Path) -> None:
    head, data, file = read_head(whole), whole.read_bytes(), tmp_path / "model.gguf"
    first = min(tensor.offset for tensor in head.tensors.values())
    file.write_bytes(fuzz_families.gguf_bytes(head.metadata, head.tensors, first) + data[first:])
    tokenizers = [open_checkpoint(path).tokenizer() for path in (file, whole)]
    assert tokenizers[0].encode("a b") == tokenizers[1].encode("a b")
