"""A byte left out of a file of weights, or put in, is never read as other weights."""

from __future__ import annotations

import random

import numpy as np
import pytest

from jaxllama.checkpoint import convert, open_checkpoint, tiny
from jaxllama.checkpoint.gguf import file as gguf_file
from jaxllama.errors import JaxLlamaError

FORMS = {
    "hf": ({}, "*.safetensors"),
    "meta": ({}, "*.pth"),
    "orbax": ({}, "arrays/state/*/c/**/[0-9]*"),
    "gguf": ({}, "*.gguf"),
    "gguf, half": ({"dtype": "float16"}, "*.gguf"),
    "gguf, quantised": ({"quantize": "q8_0"}, "*.gguf"),
    "gguf, split": ({"shards": 3}, "*.gguf"),
}


def _read(path):
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def _outcomes(path, pattern, tries):
    """Shift bytes in one file after the other; return how often it was seen, and was not."""
    expected, rng, seen, silent = _read(path), random.Random(2), 0, 0
    every = sorted(file for file in path.glob(pattern) if file.is_file())
    for number in range(tries):
        file = rng.choice(every)
        content = file.read_bytes()
        at = rng.randrange(len(content) // 3, len(content))  # where tensors are
        changed = [
            content[:at] + content[at + 1 :],
            content[:at] + b"\x35" + content[at:],
            content[:at] + content[at + 32 :],
            content[:at] + bytes(32) + content[at:],
            content + bytes(4),
        ][number % 5]
        file.write_bytes(changed)
        try:
            found = _read(path)
            silent += any(not np.array_equal(found[n], expected[n]) for n in expected)
        except JaxLlamaError:
            seen += 1
        file.write_bytes(content)
    return seen, silent


@pytest.mark.parametrize("form", FORMS)
def test_a_shift_is_seen(tmp_path, form):
    options, pattern = FORMS[form]
    to = form.split(",")[0]
    path = convert(tiny(num_hidden_layers=1), tmp_path / "out", to=to, **options).target
    assert _outcomes(path, pattern, 40) == (40, 0)


def test_without_the_check_it_would_not_be_seen(tmp_path, monkeypatch):
    source = tiny(num_hidden_layers=1, rope_scaling=None)  # whose factors lie last, and are known
    path = convert(source, tmp_path / "out", to="gguf").target
    assert _outcomes(path, "*.gguf", 20) == (20, 0)
    monkeypatch.setattr(gguf_file, "_check_places", lambda *_: None)
    _, silent = _outcomes(path, "*.gguf", 20)
    assert silent > 0


@pytest.mark.parametrize("kind", ["hole", "overlap", "order"])
def test_places_of_a_gguf_file(tmp_path, kind):
    """Of two tensors of one size the places: apart, upon each other, exchanged."""
    path = convert(tiny(num_hidden_layers=1), tmp_path / "a.gguf", to="gguf").target
    content = bytearray(path.read_bytes())

    def place(name):
        at = content.index(name) + len(name)
        axes = int.from_bytes(content[at : at + 4], "little")
        return at + 4 + 8 * axes + 4

    a, b = place(b"blk.0.ffn_gate.weight"), place(b"blk.0.ffn_up.weight")
    first, second = (int.from_bytes(content[at : at + 8], "little") for at in (a, b))
    if kind == "order":  # is another model, whole and well-formed
        content[a : a + 8], content[b : b + 8] = content[b : b + 8], content[a : a + 8]
        path.write_bytes(content)
        before = convert(tiny(num_hidden_layers=1), tmp_path / "b.gguf", to="gguf").target
        name = "model.layers.0.mlp.gate_proj.weight"
        other = "model.layers.0.mlp.up_proj.weight"
        assert np.array_equal(open_checkpoint(path).read(name), open_checkpoint(before).read(other))
        return
    moved = second + 32 if kind == "hole" else first
    content[b : b + 8] = moved.to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(JaxLlamaError, match=r"begins at byte \d+, "):
        open_checkpoint(path)
