"""`parity quality`: verdicts and their controls, the document, and one clear error a bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from unhealthy import companions, scaled

import parity
from jaxllama.checkpoint import Checkpoint, convert, in_memory
from jaxllama.checkpoint.samples import tiny
from jaxllama.command_line.group import command
from jaxllama.errors import CheckpointError, InputError
from parity.commands.quality import quality_command
from parity.quality import page
from parity.quality.report import QualityChange

app = command("parity", about="", shown=(), exit_codes="", no_cache=lambda: None)
app.command("quality")(quality_command)
app.command("other")(lambda: None)

TEXTS = [f"text {n} of so many words" + " and one more" * (n % 4) for n in range(12)]


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["quality", *words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(path)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    lines = [{"prompt": text[: 8 + n], "reference": text[8 + n :]} for n, text in enumerate(TEXTS)]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    return str(path)


def louder(checkpoint: Checkpoint, factor: float) -> Checkpoint:
    """Return a model that is surer of what it says, and it says nothing that is so."""
    weights = {name: checkpoint.read(name) for name in checkpoint.tensors}
    weights["lm_head.weight"] = weights["lm_head.weight"] * np.float32(factor)
    return in_memory(checkpoint.config, weights, companions=companions(checkpoint))


@pytest.fixture(scope="module")
def worse(data: str) -> QualityChange:
    whole = tiny()
    return parity.measure_quality(louder(whole, 2), data, baseline=whole, fail_on=["worse"])


def test_a_damaged_model_is_worse_and_a_mended_one_better(worse: QualityChange, data: str) -> None:
    (found,) = worse.measures
    assert (worse.verdict, found.verdict, worse.exit_code) == ("worse", "worse", 1)
    assert found.before is not None and found.after > 2 * found.before
    assert found.interval is not None and found.interval.low > 0
    mended = parity.measure_quality(tiny(), data, baseline=louder(tiny(), 2), fail_on=["worse"])
    assert (mended.verdict, mended.exit_code, mended.failed) == ("better", 0, [])


def test_the_same_model_twice_is_no_difference(data: str, prompts: str) -> None:
    said = run("tiny", "--data", data, "--baseline", "tiny", "--fail-on", "different")
    tokens = sum(len(text) - 1 for text in TEXTS)
    assert said.startswith(
        f"no difference: tiny, against tiny (12 examples, {tokens} tokens foretold, f32, padded)"
    )
    mask = ["--mask", "causal() & padding()"]
    assert run("tiny", "--data", prompts, *mask, *mask, "--fail-on", "different").startswith(
        "no difference: tiny, mask causal() & padding() -> causal() & padding() (12 examples"
    )


def test_layouts_and_dtypes_give_one_perplexity(data: str) -> None:
    found = {
        layout: parity.measure_quality("tiny", data, layout=layout, dtype="f64")
        for layout in ("padded", "packed")
    }
    values = [one.measures[0].after for one in found.values()]
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    assert found["packed"].verdict == "measured"


def test_a_condition_met_is_the_exit_code(data: str, tmp_path: Path) -> None:
    convert(louder(tiny(), 2), tmp_path / "loud", to="hf")
    words = [str(tmp_path / "loud"), "--data", data, "--baseline", "tiny"]
    said = run(*words, "--fail-on", "perplexity>5%", "--fail-on", "worse", code=1)
    assert said.splitlines()[-2:] == ["failed: perplexity>5%", "failed: worse"]
    assert "failed" not in run(*words, "--fail-on", "perplexity > 100000 %")


def test_texts_are_written_and_measured(prompts: str, tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    run("tiny", "--data", prompts, "--quant", "int8", "--json", str(path))
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (found["schema_version"], found["kind"]) == ("1.0", "quality")
    names = [one["name"] for one in found["measures"]]
    assert names == ["perplexity", "bleu", "chrf", "rouge1", "rouge2", "rougeL"]
    assert {one["examples"] for one in found["measures"]} == {12}
    assert "version:" in found["measures"][1]["signature"]
    assert found["distributions"]["kl_mean"] > 0
    assert found["bootstrap"]["resamples"] == 10000
    assert found["bootstrap"]["each_confidence"] == pytest.approx(1 - 0.05 / 6)
    tokens = sum(len(text) - 8 - n for n, text in enumerate(TEXTS))  # the references'
    assert found["data"] == {"source": prompts, "examples": 12, "prompts": 12, "tokens": tokens}
    assert [one["line"] for one in found["written"][:2]] == [1, 3]
    assert all(one["after"] is not None for one in found["written"])


def test_the_page_escapes_texts_and_shows_intervals(worse: QualityChange, data: str) -> None:
    assert '<svg class="whisker worse"' in page.page(worse)
    hostile = parity.measure_quality("tiny", data)
    text = page.page(QualityChange(**{**vars(hostile), "data": "<script>alert(1)</script>"}))
    assert "<script" not in text and "&lt;script&gt;" in text and "<svg" not in text


def refused(**options: Any) -> str:
    with pytest.raises(InputError) as found:
        parity.measure_quality("tiny", **options)
    return str(found.value)


def test_data_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    def said(content: bytes, **options: Any) -> str:
        path.write_bytes(content)
        found = refused(data=path, **options)
        assert found.startswith(str(path)), found
        return found.removeprefix(str(path))

    assert said(b"") == said(b" \n\n") == ": holds no text; give a file with some"
    assert said(b'{"text": "good"}\n{"text": "bad \xff"}') == (
        ": byte 0xff at offset 31, line 2, is not UTF-8; save the text as UTF-8"
    )
    assert said(b'{"text": "a good line"}\n\n{"text": ').startswith(": line 3 is no JSON: Expect")
    wanted = "expected an object with a text, or with a prompt and a reference, that are not empty"
    lines = [b'{"prompt": "a"}', b'"text"', b'{"text": " "}', b'{"text": "a", "prompt": "b"}']
    found = said(b"\n".join(lines))
    for number, held in enumerate(
        ["an object with prompt", "'text'", "an object with text", "an object with text, prompt"], 1
    ):
        assert f"line {number} is {held}, {wanted}" in found
    assert said(b'{"text": "a"}') == ": line 1 has 1 token, expected at least 2; give a longer text"
    long = json.dumps({"prompt": "a" * 9, "reference": "b" * 8}).encode()
    assert said(long, length=16) == (
        ": line 1: prompt and reference have 17 tokens, at most 16 are given at once; give a "
        "larger length"
    )
    assert "does not exist" in _error(tmp_path / "nowhere.jsonl")


def _error(path: Path) -> str:
    with pytest.raises((InputError, CheckpointError)) as found:
        parity.measure_quality("tiny", path)
    return str(found.value)


def test_options_that_do_not_fit(data: str) -> None:
    beyond = refused(data=data, length=131_073)
    assert beyond.startswith(
        "length: 131073 tokens, and the configuration states a context of 131072"
    )
    assert refused(data=data, length=1) == "length=1: expected at least 2 tokens"
    assert refused(data=data, layout="flat").endswith("expected one of padded, packed, single")
    assert refused(data=data, dtype="f16").endswith("expected one of f64, f32, bf16")
    assert refused(data=data, baseline="tiny", quant="int8") == (
        "baseline and quant: one change is measured at a time; give one"
    )
    assert refused(data=data, fail_on=["bleu"]).startswith("fail_on='bleu': one model alone is")
    said = refused(data=data, baseline="tiny", fail_on=["bleu"])
    assert said.endswith("of texts alone there is the perplexity; give prompts with references")
    for word in ("blue", "perplexity>x", "worse>1%", ""):
        assert "expected one of worse, different, " in refused(data=data, fail_on=[word])
    assert "give --baseline" in run("tiny", "--data", data, "--fail-on", "worse", code=2)
    assert "--mask: 1 given, expected two" in run(
        "tiny", "--data", data, "--mask", "causal()", code=2
    )
    assert "--quant int3" in run("tiny", "--data", data, "--quant", "int3", code=2)
    assert "`causal` is not part" in run("tiny", "--data", data, "--mask", "causal", code=2)


def test_a_condition_that_too_few_examples_cannot_meet_is_refused(tmp_path: Path) -> None:
    few, texts = tmp_path / "few.jsonl", [{"text": f"text {i}"} for i in range(8)]
    asked = {"prompt": "one and", "reference": " two"}

    def of(*rows: dict[str, str], word: str) -> str:
        few.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return refused(data=str(few), baseline="tiny", fail_on=[word])

    said = of(*texts[:7], word="perplexity>1%")
    assert said.startswith("fail_on='perplexity>1%': 7 examples, and of fewer than 8 nothing is")
    assert of(asked, word="worse").startswith("fail_on='worse': 1 example, ")
    assert of(*texts, asked, word="bleu").startswith("fail_on='bleu': 1 example, ")
    few.write_text("".join(json.dumps(row) + "\n" for row in texts))
    change = parity.measure_quality("tiny", few, baseline="tiny", fail_on=["worse"])
    assert change.exit_code == 0 and change.examples == 8


def test_models_of_other_tokens_are_not_compared(data: str) -> None:
    with pytest.raises(InputError, match="a vocabulary of 264, here 300"):
        parity.measure_quality(tiny(vocab_size=300), data, baseline=tiny())
    bare = tiny()
    weights = {name: bare.read(name) for name in bare.tensors}
    with pytest.raises(InputError, match="has no tokenizer to read texts by"):
        parity.measure_quality(in_memory(bare.config, weights), data)


def test_weights_that_are_no_numbers_are_named(data: str, tmp_path: Path) -> None:
    whole = tiny()
    weights = {name: whole.read(name).copy() for name in whole.tensors}
    weights["model.layers.2.mlp.up_proj.weight"][3, 5] = np.nan
    spoilt = in_memory(whole.config, weights, companions=companions(whole))
    with pytest.raises(CheckpointError) as found:
        parity.measure_quality(spoilt, data, baseline=whole)
    assert str(found.value) == (
        "memory checkpoint: model.layers.2.mlp.up_proj.weight: 1 elements NaN or infinite, the "
        "first (NaN) at (3, 5)"
    )


def test_remedies_typed_as_said_work(data: str, prompts: str, tmp_path: Path) -> None:
    """A pass that overflows is told from spoilt weights besides."""
    convert(scaled(1e30, "mlp.up_proj", "mlp.down_proj", layer=1), tmp_path / "huge", to="hf")
    words = [str(tmp_path / "huge"), "--data", data]
    said = run(*words, code=2)
    assert "logits are not finite in f32, though its weights are" in said
    assert said.rstrip().endswith("; run it with --dtype f64")
    assert run(*words, "--dtype", "f64").startswith("measured: ")
    alone = ["tiny", "--data", data, "--fail-on", "perplexity>100%"]
    assert "give --baseline, --quant or --mask twice" in run(*alone, code=2)
    mask = ["--mask", "causal()"]
    for more in (["--baseline", "tiny"], ["--quant", "int8"], mask * 2):
        run(*alone, *more)
    short = ["tiny", "--data", prompts, "--length", "24"]
    assert "at most 24 are given at once; give a larger --length" in run(*short, code=2)
    run(*short[:-1], "99")
