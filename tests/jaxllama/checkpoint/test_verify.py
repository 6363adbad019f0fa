from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from jaxllama.checkpoint import (
    FORMATS,
    check_manifest,
    convert,
    in_memory,
    load_model,
    open_checkpoint,
    tiny,
    verify,
)
from jaxllama.checkpoint.dtypes import cast
from jaxllama.checkpoint.manifest import digest
from jaxllama.checkpoint.names import half_split, interleave
from jaxllama.dtypes import FLOATS
from jaxllama.errors import CheckpointError

Q = "model.layers.1.self_attn.q_proj.weight"
K = "model.layers.1.self_attn.k_proj.weight"
GATE, UP = (f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up"))


@pytest.fixture
def base():
    return tiny(num_hidden_layers=3)


def _changed(base, **changes):
    weights = {n: base.read(n) for n in base.tensors} | changes
    return in_memory(base.config, {n: w for n, w in weights.items() if w is not None})


def _only(base, changed):
    (difference,) = verify(base, changed).differences
    return difference


def test_equal_checkpoints_are_equal(base):
    result = verify(base, tiny(num_hidden_layers=3))
    assert result.equal and len(result.digests) == len(base.tensors)


def test_digest_tells_dtype_and_shape_apart():
    zeros = np.zeros((4, 6), np.float16)
    others = [zeros.reshape(6, 4), zeros.astype(FLOATS["bfloat16"]), np.zeros((2, 6), np.float32)]
    assert len({digest(zeros), *map(digest, others)}) == 4
    assert digest(np.ones((4, 6)).T) == digest(np.ones((6, 4)))


@pytest.mark.parametrize(
    ("name", "transform", "explanation"),
    [
        ("model.layers.1.self_attn.o_proj.weight", lambda w: w.T.copy(), "transposed"),
        (Q, lambda w: interleave(w, 6), "rows interleaved by its 6 heads (q/k permutation)"),
        (K, lambda w: half_split(w, 2), "rows half-split by its 2 heads (q/k permutation undone)"),
        (Q, lambda w: interleave(w, 2), "rows interleaved by k's 2 heads (q/k permutation)"),
        (GATE, lambda w: cast(w, FLOATS["bfloat16"]), "cast from float32 to bfloat16"),
        (
            GATE,
            lambda w: cast(cast(w, FLOATS["float16"]), FLOATS["bfloat16"]),
            "cast from float32 to bfloat16 by way of float16",
        ),
        (
            GATE,
            lambda w: cast(cast(w, FLOATS["float16"]), FLOATS["float32"]),
            "rounded through float16",
        ),
        (GATE, lambda w: w + np.float32(0.25), ""),
    ],
)
def test_known_transforms_are_named(base, name, transform, explanation):
    difference = _only(base, _changed(base, **{name: transform(base.read(name))}))
    assert (difference.name, difference.kind, difference.explanation) == (
        name,
        "differs",
        explanation,
    )


def test_difference_is_measured(base):
    other = base.read(GATE).copy()
    other[3, 4] += 0.5
    difference = _only(base, _changed(base, **{GATE: other}))
    assert f"1 of {other.size} elements differ, by up to 0.5 (values" in difference.detail


def test_swap_and_neighbour_are_named(base):
    swapped = _changed(base, **{GATE: base.read(UP), UP: base.read(GATE)})
    found = {d.name: d.explanation for d in verify(base, swapped).differences}
    assert found == {GATE: "swapped with up_proj", UP: "swapped with gate_proj"}
    neighbour = GATE.replace(".1.", ".2.")
    shifted = _changed(base, **{GATE: cast(base.read(neighbour), FLOATS["bfloat16"])})
    assert _only(base, shifted).explanation == "layer 2's, then cast to bfloat16"


def test_missing_unexpected_and_invalid(base):
    bad = base.read(GATE).copy()
    bad[0, 0] = np.nan
    first, second = _changed(base, **{K: None, GATE: bad}), _changed(base, **{Q: None, GATE: bad})
    found = {d.name: d.kind for d in verify(first, second).differences}
    assert found == {K: "unexpected", Q: "missing", GATE: "invalid"}


def test_config_differences_count(base):
    other = in_memory(base.config.replace(rope_theta=1e6), {n: base.read(n) for n in base.tensors})
    result = verify(base, other)
    assert not result.equal and result.config == (
        "rope_theta: 500000.0 in the first, 1000000.0 in the second",
    )


@pytest.mark.parametrize("to", FORMATS)
def test_manifest_finds_one_changed_bit(tmp_path, base, to):
    target = convert(base, tmp_path / "out", to=to).target
    check_manifest(open_checkpoint(target))
    manifest = target / "jaxllama_manifest.json"
    content = json.loads(manifest.read_text())
    assert content["tensors"] == verify(base, base).digests
    content["tensors"][GATE] = "0" * 64
    manifest.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"{GATE}: digest"):
        check_manifest(open_checkpoint(target))


def test_manifest_finds_a_changed_config(tmp_path, base):
    target = convert(base, tmp_path / "out", to="hf").target
    config = json.loads((target / "config.json").read_text())
    config["rms_norm_eps"] = 1e-6
    (target / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="its configuration was changed"):
        check_manifest(open_checkpoint(target))


def test_manifest_of_changed_weights(tmp_path, base):
    target = convert(base, tmp_path / "out", to="hf").target
    file = target / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    load_model(target, dtype=np.float32)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: digest"):
        load_model(target, dtype=np.float32, check_digests=True)
    (target / "jaxllama_manifest.json").unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        check_manifest(open_checkpoint(target))


def test_a_tensor_that_no_llama_has_is_a_difference(tmp_path):
    from safetensors.numpy import load_file, save_file

    convert("tiny", tmp_path / "out", to="hf")
    file = tmp_path / "out" / "model.safetensors"
    save_file(load_file(file) | {"model.layers.1.self_attn.q_norm.weight": np.ones(16)}, file)
    found = verify("tiny", tmp_path / "out")
    assert not found.equal
    assert [d.name for d in found.differences] == ["model.layers.1.self_attn.q_norm.weight"]


def test_a_nan_is_called_one(base):
    name = "model.norm.weight"
    broken = base.read(name).copy()
    broken[3] = np.nan
    detail = _only(base, _changed(base, **{name: broken})).detail
    assert detail.startswith("1 of ") and detail.endswith("; 1 of them are NaN or infinite")


def test_files_beside_the_weights_are_compared_as_they_stand(base):
    """A merge that no text tried here needs is a difference, another way to write it is none."""

    def beside(**contents):
        names = {"model": "tokenizer.model", "json": "tokenizer.json", "map": "added_tokens.json"}
        companions = {names[kind]: lambda raw=raw: raw for kind, raw in contents.items()}
        return replace(base, format="hf", companions=companions)

    def merges(*pairs, **more):
        return json.dumps({"model": {"merges": pairs}} | more).encode()

    first = beside(json=merges("a b", "ab c"), model=b"1", map=b"{}")
    same = beside(json=merges(["a", "b"], ["ab", "c"]), model=b"1", map=b" { }")
    assert verify(first, same).equal
    (line,) = verify(first, beside(json=merges("a b", "a c"))).config
    assert line.startswith("tokenizer.json['model']['merges']: ['a b', 'ab c'] in the first")
    assert not verify(first, beside(model=b"2")).equal
    noted = verify(first, beside(json=merges("a b", "ab c", version=2), map=b'{"a": 1}'))
    assert noted.equal and [note.split(":")[0] for note in noted.notes] == [
        "tokenizer.json['version']",
        "added_tokens.json['a']",
    ]
