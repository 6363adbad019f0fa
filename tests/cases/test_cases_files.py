"""Files from the field, a test a case: read as what they are, or refused with what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import field_files as ff
import numpy as np
import pytest
import torch

from jaxllama import LlamaConfig
from jaxllama.checkpoint import convert, load_model, open_checkpoint, verify
from jaxllama.checkpoint.info import describe
from jaxllama.cli import main
from jaxllama.errors import JaxLlamaError
from jaxllama.overflow import not_finite
from parity.runner.run import run
from parity.sources.open import open_source

MOST_LINES = 12
K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sound")
    found = {to: ff.write(ff.sound(), root / to, to) for to in ("hf", "meta", "orbax")}
    return found | {"gguf": ff.write(ff.sound(), root / "model.gguf", "gguf")}


@pytest.fixture
def hf(written: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written["hf"], tmp_path / "hf"))


@pytest.fixture
def meta(written: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written["meta"], tmp_path / "meta"))


def refused(what: Callable[[], object] | Path) -> str:
    with pytest.raises(JaxLlamaError) as caught:
        load_model(open_checkpoint(what), dtype=np.float32) if isinstance(what, Path) else what()
    message = str(caught.value)
    assert len(message.splitlines()) <= MOST_LINES
    return message


def noted(path: Path, *words: str) -> None:
    """It is read, says so once, and is read alike by parity's own reader."""
    opened, source = open_checkpoint(path), open_source(path)
    assert sum(all(word in note for word in words) for note in opened.notes) == 1, opened.notes
    assert source.config == opened.config
    for name in opened.tensors:
        np.testing.assert_array_equal(source.read(name), opened.read(name), strict=True)


def same_weights(path: Path, other: Path) -> bool:
    return not verify(path, other).differences


def command(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize("name", ["pad_token_id", "bos_token_id", "eos_token_id"])
def test_case_01_minus_one_is_no_token(hf: Path, tmp_path: Path, name: str):
    value = [5, -1] if name == "eos_token_id" else -1
    ff.edit(hf / ff.CONFIG, **{name: value})
    noted(hf, name, "-1", "no such token")
    config = open_checkpoint(hf).config
    assert config.eos_token_ids == ((5,) if name == "eos_token_id" else (257,))
    assert (config.pad_token_id is None) == (name == "pad_token_id")
    back = json.loads((ff.write(open_checkpoint(hf), tmp_path / "x") / ff.CONFIG).read_text())
    assert back[name] == (5 if name == "eos_token_id" else None)
    if name == "pad_token_id":
        ff.edit(hf / ff.CONFIG, pad_token_id=-2)
        assert "pad_token_id -2, expected a token id" in refused(hf)


@pytest.mark.parametrize("none", [-100, "none", []])
def test_case_01_other_words_for_no_token(hf: Path, none: object):
    (hf / "generation_config.json").write_text(json.dumps({"pad_token_id": none}))
    ff.edit(hf / ff.CONFIG, pad_token_id=none)
    opened = open_checkpoint(hf)
    assert f"config.json: pad_token_id {none!r} is read as no such token" in opened.notes
    assert opened.config.pad_token_id is None and open_source(hf).config == opened.config
    assert not describe(open_checkpoint(hf)).problems
    open_checkpoint(hf).tokenizer()
    ff.edit(hf / ff.CONFIG, eos_token_id="x")
    assert "eos_token_id 'x', expected a token id in 0..263" in refused(hf)


def test_case_01_minus_one_in_other_files(hf: Path, written: dict[str, Path], tmp_path: Path):
    (hf / "generation_config.json").write_text('{"pad_token_id": -1}')
    noted(hf, "generation_config.json", "pad_token_id -1")
    unsigned = Path(shutil.copy(written["gguf"], tmp_path / "m.gguf"))
    ff.set_key(unsigned, "tokenizer.ggml.padding_token_id", 2**32 - 1)
    noted(unsigned, "pad_token_id", "no such token")
    assert open_checkpoint(unsigned).config.pad_token_id is None
    open_checkpoint(unsigned).tokenizer()


@pytest.mark.parametrize("stated", [-1, ...])
def test_case_01_the_rows_of_the_embedding(meta: Path, stated: object):
    assert not open_checkpoint(meta).notes
    ff.edit(meta / "params.json", vocab_size=stated)
    noted(meta, "vocab_size", "read as 264, the embedding's rows")


@pytest.mark.parametrize("role", ["bos", "pad"])
def test_case_01_one_file_alone_is_said_to_decide(hf: Path, role: str):
    """Of a role that the tokenizer names, its word is taken; else generation_config.json's."""
    field = f"{role}_token_id"
    (hf / "generation_config.json").write_text(json.dumps({field: 9}))
    opened = open_checkpoint(hf)
    tokenizer = opened.tokenizer()
    said = [note for note in (*opened.notes, *tokenizer.notes) if field in note]
    assert len(said) == 1 and f"{field} 9 in generation_config.json is left" in said[0]
    assert getattr(tokenizer, f"{role}_id") == getattr(opened.config, field) != 9
    ff.edit(hf / "tokenizer_config.json", **{f"{role}_token": ...})
    opened = open_checkpoint(hf)
    tokenizer = opened.tokenizer()
    said = [note for note in (*opened.notes, *tokenizer.notes) if field in note]
    assert len(said) == 1 and f"{field} [9] is taken" in said[0]
    assert getattr(tokenizer, f"{role}_id") == 9


def test_case_02_a_pad_beyond_the_rows(hf: Path):
    ff.edit(hf / ff.CONFIG, pad_token_id=264)
    said = refused(hf)
    assert "pad_token_id 264" in said and "0..263" in said
    assert "set pad_token_id to null" in said and "resize the embedding" in said
    ff.edit(hf / ff.CONFIG, pad_token_id=None)  # the remedy
    tokenizer = json.loads((hf / "tokenizer.json").read_text())
    added = {**tokenizer["added_tokens"][-1], "id": 264, "content": "<pad>"}
    ff.edit(hf / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], added])
    found = describe(open_checkpoint(hf))
    assert any("265 tokens" in line and "<pad>" in line for line in found.odd)
    assert not found.problems


def test_case_03_saved_again_by_an_older_release(hf: Path):
    before = open_checkpoint(hf).config
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    ff.edit(hf / ff.CONFIG, rope_parameters=rope, rope_theta=10000.0, rope_scaling=None)
    said = refused(hf)
    assert "rope_theta 10000.0, rope_parameters.rope_theta 500000.0" in said
    assert "likelier is 500000.0" in said and said.endswith("remove rope_theta")
    ff.edit(hf / ff.CONFIG, rope_theta=...)
    assert open_checkpoint(hf).config == before.replace(rope_scaling=None)


def test_case_04_swish_is_silu(hf: Path, written: dict[str, Path], tmp_path: Path):
    for name in ("SiLU", "silu ", "swish"):
        ff.edit(hf / ff.CONFIG, hidden_act=name)
        noted(hf, repr(name), "'silu'")
    again = ff.write(open_checkpoint(hf), tmp_path / "again")
    assert json.loads((again / ff.CONFIG).read_text())["hidden_act"] == "silu"
    assert same_weights(again, written["hf"])
    ff.edit(hf / ff.CONFIG, hidden_act="gelu")
    assert "hidden_act 'gelu' means another activation" in refused(hf)


PADDLE = {
    "alibi": False,
    "fuse_attention_qkv": False,
    "pp_recompute_interval": 1,
    "recompute_granularity": "full",
    "rope_scaling_factor": 1.0,
    "rope_scaling_type": None,
    "seq_length": 2048,
    "tensor_parallel_degree": 1,
    "use_fused_rope": True,
    "virtual_pp_degree": 1,
}


def test_case_05_fields_of_another_library(hf: Path):
    before = open_checkpoint(hf).config
    ff.edit(hf / ff.CONFIG, **PADDLE)
    assert open_checkpoint(hf).config == before
    strange = {f"strange_{i}": i for i in range(30)}
    ff.edit(hf / ff.CONFIG, alibi=True, rope_scaling_type="linear", rope_scaling_factor=4.0)
    ff.edit(hf / ff.CONFIG, **strange)
    lines = refused(hf).splitlines()
    assert "alibi True means a bias by distance" in lines[1]
    assert 'write "rope_scaling": {"rope_type": "linear", "factor": 4.0}' in lines[2]
    assert "30 fields are not known" in lines[3] and "and 22 more" in lines[3]
    assert lines[3].endswith("remove those that are certain not to")
    assert len(lines) == 4


OFF = {
    "layer_types": ["full_attention"] * 3,
    "no_rope_layers": [1, 1],
    "gradient_checkpointing": True,
    "embd_pdrop": 0.1,
    "neftune_noise_alpha": 5,
    "max_window_layers": 28,
    "max_seq_len": 2048,
}
ON = {
    "layer_types": ["full_attention", "sliding_attention"],
    "no_rope_layers": [1, 0],
    "scale_emb": 12,
}


def test_case_05_fields_of_other_models(hf: Path, meta: Path):
    before = open_checkpoint(hf).config
    ff.edit(hf / ff.CONFIG, **OFF)
    ff.edit(hf / "tokenizer_config.json", bos_token_id=256, eos_token_id=257, pad_token_id=None)
    assert open_checkpoint(hf).config == before and open_checkpoint(hf).tokenizer()
    ff.edit(meta / "params.json", max_seq_len=2048, dropout=0, bos_id=1, eos_id=2)
    open_checkpoint(meta)
    for name, value in ON.items():
        ff.edit(hf / ff.CONFIG, **{name: value})
        assert f"{name} {value!r} means" in refused(hf)
        ff.edit(hf / ff.CONFIG, **{name: OFF.get(name)})
    ff.edit(meta / "params.json", moe_args={"num_experts": 8})
    assert "means a mixture of experts" in refused(meta)


def _packed(name: str, part: str, dtype: Any) -> dict[str, np.ndarray]:
    return {f"{name}.{part}": np.ones((4, 4), dtype)}


LAYER = "model.layers.0.mlp.down_proj"
QUANTISED: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {
    "MLX": ({"quantization": {"group_size": 32, "bits": 4}}, _packed(LAYER, "scales", np.float16)),
    "GPTQ": ({"quantization_config": {"quant_method": "gptq"}}, _packed(LAYER, "qweight", "i4")),
    "AWQ": ({"quantization_config": {"quant_method": "awq"}}, _packed(LAYER, "qzeros", "i4")),
    "bitsandbytes": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        _packed(LAYER, "weight.absmax", np.float32),
    ),
    "compressed-tensors": (
        {"quantization_config": {"quant_method": "compressed-tensors"}},
        _packed(LAYER, "weight_packed", "i4"),
    ),
    "FP8": (
        {"quantization_config": {"quant_method": "fp8"}},
        _packed(LAYER, "weight_scale_inv", np.float32),
    ),
    "hqq": ({"quantization_config": {"quant_method": "hqq"}}, _packed(LAYER, "W_q", "u1")),
}


@pytest.mark.parametrize("method", QUANTISED)
def test_case_06_quantised_is_said_once(hf: Path, method: str):
    fields, parts = QUANTISED[method]
    found = ff.tensors(hf)
    ff.edit(hf / ff.CONFIG, **fields)
    said = refused(hf)
    assert method in said and "quantised weights" in said and "dequantise" in said
    assert "\n" not in said
    ff.edit(hf / ff.CONFIG, **dict.fromkeys(fields, ...))  # what people try next
    packed = found[f"{LAYER}.weight"].astype(np.int8)
    ff.store(hf, {**found, f"{LAYER}.weight": packed, **parts})
    said = refused(hf)
    assert "quantised weights" in said and "dequantise" in said and "\n" not in said
    ff.store(hf, {**found, **parts})
    if f"{LAYER}.weight" in found and method != "GPTQ":
        noted(hf, "quantisation leaves", "floats")


# What other methods store of a layer, by names that no list has: some are made up.
PACKED: dict[str, dict[str, Any]] = {
    "eetq": {"weight": np.int8, "weight_scales": np.float32},
    "quanto": {"weight._data": np.int8, "weight._scale": np.float32},
    "exl2": {"q_weight": np.int32, "q_scale": np.int32, "q_scale_max": np.float16},
    "mxfp4": {"weight_blocks": np.uint8, "weight_scales": np.uint8},
    "torchao": {"_weight_qdata": np.int32, "_weight_scale": np.float32},
    "a new one": {"blob": np.uint8, "about.it.all": np.float32},
}


@pytest.mark.parametrize("method", PACKED)
def test_case_06_quantised_by_any_other_method(hf: Path, method: str):
    found = ff.tensors(hf)
    of_layer = {f"{LAYER}.{part}": np.ones((4, 4), kind) for part, kind in PACKED[method].items()}
    ff.store(hf, {n: v for n, v in found.items() if n != f"{LAYER}.weight"} | of_layer)
    said = refused(hf)
    assert "quantised weights" in said and "dequantise" in said and "\n" not in said
    floats = {name: values.astype(np.float32) for name, values in of_layer.items()}
    ff.store(hf, found | {n: v for n, v in floats.items() if not n.endswith(".weight")})
    if method == "a new one":  # beside floats that is no by-product that is known
        said = refused(hf)
        assert "unexpected tensor" in said and "quantised weights" not in said
    mlx = {"weight": np.uint32, "scales": np.float16, "biases": np.float16}
    of_layer = {f"{LAYER}.{part}": np.ones((4, 4), kind) for part, kind in mlx.items()}
    ff.store(hf, found | of_layer)
    assert "MLX's quantised weights" in refused(hf)


def test_case_06_quantised_in_other_formats(
    hf: Path, meta: Path, written: dict[str, Path], tmp_path: Path
):
    import safetensors.torch

    narrow = {n: torch.tensor(v) for n, v in ff.tensors(hf).items()}
    narrow[f"{LAYER}.weight"] = narrow[f"{LAYER}.weight"].to(torch.float8_e4m3fn)
    safetensors.torch.save_file(narrow, hf / ff.WEIGHTS, {"format": "pt"})
    assert "FP8 quantised weights" in refused(hf)
    ff.edit(meta / "params.json", quantization_args={"group_size": 256, "scheme": "8da4w"})
    assert "Meta's QLoRA or SpinQuant quantised weights" in refused(meta)
    ff.edit(meta / "params.json", quantization_args=...)
    state = torch.load(meta / "consolidated.00.pth", weights_only=True)
    state["layers.0.feed_forward.w2.weight"] = state["layers.0.feed_forward.w2.weight"].to(
        torch.int8
    )
    state["layers.0.feed_forward.w2.scales"] = torch.ones(3)
    torch.save(state, meta / "consolidated.00.pth")
    assert "Meta's QLoRA or SpinQuant quantised weights" in refused(meta)
    removed = Path(shutil.copy(written["gguf"], tmp_path / "removed.gguf"))
    for block in range(2):
        ff.set_encoding(removed, f"blk.{block}.ffn_up.weight", 31)
    assert "Q4_0_4_4 was removed from the format" in refused(removed)
    for block in range(2):
        ff.set_encoding(removed, f"blk.{block}.ffn_up.weight", 24)
    assert "encoding I8 cannot be dequantised" in refused(lambda: open_checkpoint(removed))


def test_case_07_two_sets_of_weights(hf: Path, written: dict[str, Path]):
    shards = ff.shard(hf, {n: v + 1 for n, v in ff.tensors(hf).items()})
    said = refused(hf)
    assert ff.WEIGHTS in said and ff.INDEX in said and "move one of the two" in said
    shards[0].unlink()
    noted(hf, f"{ff.WEIGHTS} is read", ff.INDEX, "stale")
    noted(hf, "other weights are not read", shards[1].name)
    assert same_weights(hf, written["hf"])
    for file in (shards[1], hf / ff.INDEX):
        file.unlink()
    assert not open_checkpoint(hf).notes


def test_case_07_two_formats_in_a_directory(hf: Path, written: dict[str, Path]):
    shutil.copy(written["gguf"], hf / "model-q8.gguf")
    noted(hf, "other weights are not read", "model-q8.gguf")
    for file in written["meta"].glob("consolidated*"):
        shutil.copy(file, hf)
    said = refused(hf)
    assert "several formats" in said and "consolidated.00.pth" in said and ff.WEIGHTS in said
    for file in [hf / ff.WEIGHTS, *hf.glob("consolidated*")]:
        file.unlink()
    noted(hf, "model-q8.gguf is read", "config.json is not")
    shutil.copy(written["gguf"], hf / "model-f16.gguf")
    assert "2 GGUF files (model-f16.gguf, model-q8.gguf)" in refused(hf)


def test_case_08_an_index_of_nothing(hf: Path):
    (hf / ff.WEIGHTS).rename(hf / "model-00001-of-00001.safetensors")
    (hf / f"{ff.WEIGHTS}.index.json").write_text('{"weight_map": {}}')
    assert "weight_map names no tensor" in refused(hf)
    (hf / "model-00001-of-00001.safetensors").rename(hf / ff.WEIGHTS)
    noted(hf, "weight_map names no tensor")


def test_case_08_the_index_leaves_a_tensor_out(hf: Path):
    found = ff.tensors(hf)
    (hf / ff.WEIGHTS).unlink()
    (file,) = ff.shard(hf, found, parts=1)
    index = json.loads((hf / ff.INDEX).read_text())
    del index["weight_map"]["lm_head.weight"]
    ff.edit(hf / ff.INDEX, **index)
    said = refused(hf)
    assert "\n" not in said
    assert file.name in said and f'add "lm_head.weight": "{file.name}" to its weight_map' in said
    index["weight_map"]["lm_head.weight"] = file.name  # as it says
    ff.edit(hf / ff.INDEX, **index)
    load_model(open_checkpoint(hf), dtype=np.float32)


def _in_the_layers(name: str) -> str:
    return name.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn.")


PREFIXES: dict[str, Callable[[str], str]] = {
    p: (lambda name, p=p: p + name)
    for p in ("_orig_mod.", "module.", "model.", "base_model.model.", "_fsdp_wrapped_module.")
} | {"actor.net.": lambda name: "actor.net." + name, "_checkpoint_wrapped": _in_the_layers}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_case_09_a_wrapper_is_named_once(hf: Path, written: dict[str, Path], prefix: str):
    ff.rename(hf, PREFIXES[prefix])
    noted(hf, prefix)
    assert same_weights(hf, written["hf"])


def test_case_09_other_common_causes(hf: Path, meta: Path, written: dict[str, Path]):
    ff.rename(hf, lambda name: "module._orig_mod." + name)
    assert len(open_checkpoint(hf).notes) == 2
    assert same_weights(hf, written["hf"])
    plain = ff.tensors(written["hf"])
    inner = {f"language_model.{name}": values for name, values in plain.items()}
    ff.store(hf, inner | {"vision_tower.patch.weight": np.ones((4, 4), np.float32)})
    said = refused(hf)
    assert "'language_model.'" in said and "vision_tower.patch.weight" in said and "\n" not in said
    stray = {"ema.model.norm.weight": plain["model.norm.weight"]}
    ff.store(hf, plain | stray)
    assert "ema.model.norm.weight: " in (said := refused(hf)) and "begin with" not in said
    ff.store(hf, plain | {f"{LAYER}.lora_A.default.weight": np.ones((4, 4), np.float32)})
    assert "merge_and_unload" in refused(hf)
    ff.store(hf, {f"transformer.h.{i}.c_attn.weight": v for i, v in enumerate(plain.values())})
    said = refused(hf)  # of no Llama: like problems are one line each
    assert "more like it" in said
    state = torch.load(meta / "consolidated.00.pth", weights_only=True)
    torch.save({f"_orig_mod.{n}": t for n, t in state.items()}, meta / "consolidated.00.pth")
    noted(meta, "_orig_mod.")
    assert same_weights(meta, written["meta"])


FILES = {
    "weights": ("hf", ff.WEIGHTS),
    "config": ("hf", ff.CONFIG),
    "tokenizer": ("hf", "tokenizer.json"),
    "tokenizer_config": ("hf", "tokenizer_config.json"),
    "generation": ("hf", "generation_config.json"),
    "params": ("meta", "params.json"),
    "pth": ("meta", "consolidated.00.pth"),
    "orbax config": ("orbax", ff.CONFIG),
    "gguf": ("gguf", ""),
}


@pytest.mark.parametrize("file", FILES)
def test_case_11_first_bytes_in_every_reader(
    written: dict[str, Path], tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
):
    form, name = FILES[file]
    copy = shutil.copy if form == "gguf" else shutil.copytree
    place = Path(copy(written[form], tmp_path / f"copy.{form}"))
    target = place / name if name else place
    for kind, (content, word) in ff.STRANGERS.items():
        if kind == "zip" and file == "pth":  # PyTorch's own are
            continue
        ff.replace_file(target, content)
        code, out, err = command(capsys, "info", place)
        said = " ".join((out + err).split())
        assert code == 2 and word in said and "Traceback" not in said, (kind, said)
        if kind == "empty":
            assert "empty" in said or "0 bytes" in said or "has 0" in said
    target.unlink()
    if name:
        target.mkdir()
        code, out, err = command(capsys, "info", place)
        assert code == 2 and "directory" in out + err


def test_case_12_tensors_at_odd_bytes(hf: Path, written: dict[str, Path]):
    ff.at_odd_bytes(hf)
    assert verify(hf, written["hf"]).equal


def test_case_13_tied_with_another_head(
    hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    ff.edit(hf / ff.CONFIG, tie_word_embeddings=True)
    other = Path(shutil.copytree(hf, tmp_path / "without"))
    kept = ff.tensors(other)
    del kept["lm_head.weight"]
    ff.store(other, kept)
    for pair in ((hf, other), (other, hf)):
        code, out, _ = command(capsys, "verify", *pair)
        assert code == 1 and "lm_head.weight" in out and "though tie_word_embeddings" in out
    assert "set it to false" in refused(lambda: convert(hf, tmp_path / "x", to="gguf"))
    code, out, _ = command(capsys, "info", hf)
    assert code == 2 and "problem" in out and "odd" not in out
    ff.store(hf, kept | {"lm_head.weight": kept["model.embed_tokens.weight"].copy()})
    assert verify(hf, other).equal and command(capsys, "info", hf)[0] == 0


def test_case_13_verify_compares_settings(hf: Path, tmp_path: Path):
    other = Path(shutil.copytree(hf, tmp_path / "other"))
    assert verify(hf, other).equal
    settings: dict[str, dict[str, Any]] = {
        "config.json": {"eos_token_id": 258},
        "tokenizer_config.json": {"chat_template": "{{ messages }}"},
    }
    for name, change in settings.items():
        before = (other / name).read_text()
        ff.edit(other / name, **change)
        found = verify(hf, other)
        assert not found.equal and not found.differences
        (other / name).write_text(before)
    for directory, value in ((hf, 0.6), (other, 0.7)):
        (directory / "generation_config.json").write_text(json.dumps({"temperature": value}))
    assert any("temperature: 0.6 in the first" in line for line in verify(hf, other).config)
    (other / "tokenizer.json").write_text("{}")
    assert any("cannot be read in the second" in line for line in verify(hf, other).config)


def test_case_13_verify_says_what_differs(
    hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = Path(shutil.copytree(hf, tmp_path / "other"))
    tokens = json.loads((hf / "tokenizer.json").read_text())
    tokens["added_tokens"][-1]["content"] = "<|other|>"
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    lines = [line for line in verify(hf, other).config if "special_tokens" in line]
    assert "special_tokens['<|reserved_4|>']: 263 in the first, None in the second" in lines[0]
    for where, text in ((hf, "a"), (other, "b")):
        ff.edit(where / "tokenizer_config.json", chat_template="{{ x }}" * 30 + text + "y" * 60)
    assert any("chat_template from character 210: 'ay" in line for line in verify(hf, other).config)
    shutil.copy(hf / "tokenizer.json", other)
    shutil.copy(hf / "tokenizer_config.json", other)
    (other / "generation_config.json").write_text('{"eos_token_id": 9999}')
    found = verify(hf, other)
    assert (
        not found.differences
        and "in the second: generation_config.json: eos_token_id 9999" in (found.config[0])
    )
    code, out, _ = command(capsys, "verify", hf, other)
    assert code == 1 and out.startswith("different: settings")


def test_case_13_verify_says_what_is_odd_about_tokenizers(
    hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = Path(shutil.copytree(hf, tmp_path / "other"))
    assert verify(hf, other).notes == ()
    ff.edit(other / "tokenizer_config.json", eos_token="<|reserved_4|>")
    said = "tokenizer: in the second: eos_token '<|reserved_4|>'"
    assert [note.startswith(said) for note in verify(hf, other).notes].count(True) == 1
    shutil.copy(other / "tokenizer_config.json", hf)
    found = verify(hf, other)
    assert found.equal and found.notes[0].startswith("tokenizer: in both: ")
    code, out, _ = command(capsys, "verify", hf, other)
    assert code == 0 and out.startswith("equal: ") and "\nnote: tokenizer: in both: " in out


def test_case_14_only_a_bin(hf: Path):
    (hf / ff.WEIGHTS).rename(hf / "pytorch_model.bin")
    said = refused(hf)
    assert "pytorch_model.bin" in said and "save_pretrained" in said
    (hf / "pytorch_model.bin").rename(hf / "weights.safetensors")
    assert "weights.safetensors" in refused(hf) and "rename it to model.safetensors" in refused(hf)
    (hf / "weights.safetensors").rename(hf / ff.WEIGHTS)
    found = ff.tensors(hf)
    (hf / ff.WEIGHTS).unlink()
    for file in ff.shard(hf, found, parts=4)[1:]:
        file.unlink()
    said = refused(hf)
    assert "model-00002-of-00004.safetensors: does not exist" in said
    assert "3 of 4 files" in said and "fetch them" in said


def test_case_14_what_is_there_is_said(hf: Path, meta: Path):
    weights = (hf / ff.WEIGHTS).read_bytes()
    ff.shard(hf, ff.tensors(hf), parts=3)
    for name in (ff.WEIGHTS, ff.INDEX, "model-00002-of-00003.safetensors"):
        (hf / name).unlink()
    said = refused(hf)
    assert "2 of 3 files" in said and f"fetch {ff.INDEX}, and the other files" in said
    assert "rename" not in said
    for file in hf.glob("model-*"):
        file.unlink()
    (hf / "checkpoint-100").mkdir()
    (hf / "checkpoint-100" / ff.WEIGHTS).write_bytes(weights)
    assert f"checkpoint-100/ holds {ff.WEIGHTS}; give that directory" in refused(hf)
    (hf / "model-00001-of-00001.safetensors").write_bytes(weights)
    assert "rename it to model.safetensors" in refused(hf)
    (meta / "consolidated.00.pth").rename(meta / "consolidated.pth")
    assert "but consolidated.pth: rename it" in refused(meta)


def test_case_14_a_tokenizer_that_is_not_read_is_named(hf: Path):
    (hf / "tokenizer.json").unlink()
    assert "no tokenizer beside the weights" in describe(open_checkpoint(hf)).odd
    (hf / "vocab.json").write_text("{}")
    (said,) = (line for line in describe(open_checkpoint(hf)).odd if "no tokenizer" in line)
    assert "but vocab.json: `AutoTokenizer.from_pretrained" in said


def test_case_20_what_the_format_defines_is_named():
    params = {"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256}
    params |= {"ffn_dim_multiplier": 1.0, "norm_eps": 1e-5, "rope_theta": 1000000}

    def read() -> LlamaConfig:
        return LlamaConfig.from_meta(params, tie_word_embeddings=False, vocab_size=32016)

    assert "n_kv_heads is missing" in refused(read) and "takes n_heads, 32, then" in refused(read)
    params["n_kv_heads"] = 32  # as it says
    assert read().num_key_value_heads == 32
    assert "500000.0 for Llama 3" in refused(
        lambda: LlamaConfig.from_meta(
            params | {"rope_theta": None}, tie_word_embeddings=False, vocab_size=32016
        )
    )


def test_case_21_side_files_do_not_decide(hf: Path, meta: Path, written: dict[str, Path]):
    shutil.copy(meta / "params.json", hf)
    noted(hf, "params.json is not read")
    assert open_checkpoint(hf).format == open_source(hf).format == "hf"
    assert same_weights(hf, written["hf"])
    shutil.copy(hf / ff.CONFIG, meta)
    noted(meta, "config.json is not read")
    assert open_checkpoint(meta).format == open_source(meta).format == "meta"


def test_case_32_overflow_in_the_askers_words(hf: Path, capsys: pytest.CaptureFixture[str]):
    found = ff.tensors(hf)
    for part in ("gate", "up"):
        found[f"model.layers.1.mlp.{part}_proj.weight"] *= np.float32(180)
    ff.store(hf, found)
    arguments = ("generate", hf, "abc", "--max-tokens", "2", "--dtype")
    code, _, err = command(capsys, *arguments, "f16")
    assert code == 2 and "layers.1.mlp_act is the first to overflow, with values up to" in err
    assert "65504" in err and "give --dtype bf16 or --dtype f32" in err
    ff.edit(hf / ff.CONFIG, pad_token_id=-1)
    code, _, err = command(capsys, *arguments, "bf16")  # as it says
    assert code == 0 and "note: config.json: pad_token_id -1 is read as no such token" in err
    error = not_finite(load_model(hf, dtype=np.float16), 0, 0, [97, 98, 99])
    assert str(error).endswith("load the model with dtype bfloat16 or float32")
    assert error.command.endswith("give --dtype bf16 or --dtype f32")


def test_cases_read_with_a_note_are_equal_to_pytorch(hf: Path):
    """Cases 01, 04, 09 and 21 at once: both readers take them alike, and a run says so."""
    ff.edit(hf / ff.CONFIG, pad_token_id=-1, hidden_act="swish")
    ff.rename(hf, lambda name: "module._orig_mod." + name)
    (hf / "params.json").write_text("{}")
    result = run(hf, modes="free", scenarios="causal", dtypes="f64", length=9)
    assert result.verdict == "equal" and result.reading is not None
    assert (result.reading.tensors, result.reading.differences) == (21, ())
    for word in ("pad_token_id -1", "'swish'", "_orig_mod", "params.json"):
        assert any(word in note for note in result.notes)


def test_case_33_rows_of_zeros(tmp_path: Path):
    path = ff.write(ff.zero_rows(258, 261, 263), tmp_path / "zeros")
    result = run(
        path,
        prompt=[256, 72, 263, 101, 261, 108, 263, 263, 111],
        modes="free,grad",
        scenarios="causal",
        dtypes="f32",
    )
    assert result.verdict == "equal"
