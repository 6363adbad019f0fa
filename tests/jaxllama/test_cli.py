from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxllama import cli
from jaxllama.checkpoint import convert, tiny, verify

SCRIPTS = Path(__file__).parents[2] / "scripts"


def _run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    code = stop.value.code
    return (code if isinstance(code, int) else 0), out, err


def test_info_says_what_it_is(capsys):
    code, out, _ = _run(capsys, "info", "tiny", "--json")
    found = json.loads(out)
    assert code == 0 and not found["problems"]
    assert (found["format"], found["parameters"]) == ("memory", tiny().nbytes // 4)
    assert found["dtypes"] == {"float32": tiny().nbytes // 4}
    assert found["tokenizer"] == "264 tokens, a chat template"
    code, out, _ = _run(capsys, "info", "tiny")
    assert code == 0 and "rope_theta" in out


def test_info_says_what_decoding_takes(capsys, tmp_path):
    """Of tiny: 5 layers of 2 key heads of 16 numbers, keys and values, in float32."""
    token, context = 2 * 5 * 2 * 16 * 4, 131072
    per_layer = 96 * (6 + 2 * 2 + 6) * 16 + 3 * 96 * 136
    step = 4 * (5 * per_layer + 96 * 264)
    found = json.loads(_run(capsys, "info", "tiny", "--json")[1])["decoding"]
    assert found == {
        "attention": "GQA, 2 key heads for 6 query heads",
        "dtype": "float32",
        "context": context,
        "cache_token": token,
        "cache_context": token * context,
        "step": step,
        "step_context": step + token * context,
    }
    out = _run(capsys, "info", "tiny", "--bandwidth", "2")[1]
    rates = f"{2e9 / step:.1f} tokens a second, {2e9 / (step + token * context):.1f} after 131,072"
    assert f"at 2 GB/s {rates}" in " ".join(out.split())
    assert _run(capsys, "info", "tiny", "--bandwidth", "0")[0] == 2
    for heads, said in (("1", "MQA, 1 key head for 6"), ("6", "MHA, 6 key heads for 6")):
        target = tmp_path / heads
        _run(capsys, "convert", "tiny", target, "--to", "hf", "--kv-heads", heads, "--quiet")
        found = json.loads(_run(capsys, "info", target, "--json")[1])["decoding"]
        assert found["attention"].startswith(said)
        assert found["cache_token"] == token * int(heads) // 2


def test_info_says_what_is_wrong_and_odd(capsys, tmp_path):
    _run(capsys, "convert", "tiny", tmp_path / "out", "--to", "hf", "--quiet")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["num_key_value_heads"] = 3
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    (tmp_path / "out" / "tokenizer.json").unlink()
    code, out, _ = _run(capsys, "info", tmp_path / "out", "--json")
    found = json.loads(out)
    assert code == 2 and len(found["problems"]) == 10
    assert "check num_key_value_heads in config.json" in found["problems"][0]
    assert "no tokenizer beside the weights" in found["odd"]


def test_info_names_the_family():
    from jaxllama.checkpoint import in_memory
    from jaxllama.checkpoint.info import describe
    from jaxllama.presets import PRESETS

    for name, preset in PRESETS.items():
        assert name in describe(in_memory(preset, {})).family
    finetuned = PRESETS["llama-3.1-8b"].replace(vocab_size=128300)
    found = describe(in_memory(finetuned, {}))
    assert found.family.startswith("llama-3.1-8b")
    assert any("vocab_size is 128300" in line for line in found.odd)


def test_convert_and_verify(capsys, tmp_path):
    target = tmp_path / "out"
    code, out, _ = _run(capsys, "convert", "tiny", target, "--to", "meta", "--shards", 2)
    assert code == 0 and "48 tensors, 1,481,856 bytes" in out and "nothing lost" in out
    assert _run(capsys, "verify", "tiny", target)[:2] == (0, "equal: 48 tensors, to the bit\n")
    assert _run(capsys, "verify", target, "--manifest")[0] == 0


def test_rounding_is_stated_and_differences_explained(capsys, tmp_path):
    target = tmp_path / "out"
    code, out, _ = _run(capsys, "convert", "tiny", target, "--to", "hf", "--dtype", "bf16")
    assert code == 0 and out.count("rounded: ") == 48 and "48 tensors rounded" in out
    code, out, _ = _run(capsys, "verify", "tiny", target)
    assert code == 1 and out.startswith("different: 48 of 48 tensors\n")
    assert out.count("[cast from float32 to bfloat16]") == 20
    assert out.endswith("\n  and 28 more tensors\n")


def test_verify_says_first_how_configurations_differ(capsys, tmp_path):
    target = tmp_path / "out"
    _run(capsys, "convert", "tiny", target, "--to", "hf", "--dtype", "bf16", "--quiet")
    config = json.loads((target / "config.json").read_text())
    config["rms_norm_eps"] = 0.125
    (target / "config.json").write_text(json.dumps(config))
    lines = _run(capsys, "verify", "tiny", target)[1].splitlines()
    assert lines[1] == "  rms_norm_eps: 1e-05 in the first, 0.125 in the second"
    assert len(lines) == 1 + 1 + cli.MOST_DIFFERENCES + 1


def test_of_two_models_all_tensors_of_both_are_counted(capsys, tmp_path):
    target = tmp_path / "out"
    convert(tiny(num_hidden_layers=6), target, to="hf")
    code, out, _ = _run(capsys, "verify", "tiny", target)
    assert code == 1 and out.startswith("different: 11 of 57 tensors\n  num_hidden_layers: 5 in")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere"], "jaxllama: nowhere: does not exist"),
        (["convert", "tiny", "x", "--to", "onnx"], "jaxllama: --to 'onnx': expected one of"),
        (["convert", "tiny", "x", "--to", "hf", "--dtype", "f8"], "--dtype f8: expected one of"),
        (["verify", "tiny"], "jaxllama: give two checkpoints"),
        (["verify", "tiny", "--manifest"], "made in memory, so it has no manifest"),
        (["convert", "tiny", "x"], "Missing option '--to'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, arguments, message):
    code, out, err = _run(capsys, *arguments)
    assert code == 2 and not out and message in err


def test_script_is_the_same_command(tmp_path):
    run = subprocess.run(
        [sys.executable, SCRIPTS / "convert_checkpoint.py", "tiny", tmp_path / "a", "--to", "hf"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nothing lost" in run.stdout
    assert verify("tiny", tmp_path / "a").equal


def test_an_interrupt_says_what_it_leaves(capsys, tmp_path, monkeypatch):
    def interrupted(source, target, **options):
        target.with_name(f".{target.name}.partial").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxllama.checkpoint.convert", interrupted)
    code, _, errors = _run(capsys, "convert", "tiny", tmp_path / "out", "--to", "hf")
    assert code == 130
    assert errors.startswith("interrupted; run it again to go on from ")
    assert ".out.partial, or remove that" in errors


def test_nothing_stands_above_an_early_error(capsys, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    code, out, errors = _run(capsys, "convert", "tiny", tmp_path / "full", "--to", "hf")
    assert (code, out) == (2, "") and errors.startswith(f"jaxllama: {tmp_path / 'full'}: exists")
    assert "--overwrite" in errors and errors.count("\n") == 1
