"""`parity health`: any subject, its document, and one clear error for each bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign_llamas as llamas
import numpy as np
import pytest
from typer.testing import CliRunner
from unhealthy import companions, scaled

import parity
from jaxllama.checkpoint import convert, in_memory, open_checkpoint
from jaxllama.checkpoint.samples import tiny
from jaxllama.command_line.group import command
from jaxllama.errors import CheckpointError, InputError
from parity.commands.explain import explain_command
from parity.commands.health import health_command
from parity.health.rule import catalogue
from parity.subjects import from_torch

app = command("parity", about="", shown=(), exit_codes="", no_cache=lambda: None)
app.command("health")(health_command)
app.command("explain")(explain_command)

SHORT = ["--length", "24", "--no-gradients"]


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*words])
    assert result.exit_code == code, result.output
    return result.output


def refused(**options: Any) -> str:
    with pytest.raises(InputError) as found:
        parity.check_health("tiny", **options)
    return str(found.value)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("A text of more than eight bytes, and as many tokens.")
    return path


def test_the_first_line_is_the_verdict() -> None:
    lines = run("health", "tiny", *SHORT).splitlines()
    assert lines[0] == (
        "healthy: no errors, no warnings in tiny, random weights (jaxllama, f32, 1 text of 24 "
        "tokens)"
    )
    assert lines[1].startswith("information: random-weights: ")
    assert "(heuristic); Martin and Mahoney" in lines[2]
    assert lines[-1] == "more: parity explain random-weights"
    assert any(
        line == "note: the built-in text: the first 24 tokens were taken (--length)"
        for line in lines
    )


def test_the_document_has_every_figure_of_every_head(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    run("health", "tiny", "--length", "24", "--json", str(path))
    text = path.read_text()
    assert text.startswith('{\n "schema_version": "1.0"')
    found = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert (found["kind"], found["verdict"], found["random_weights"]) == ("health", "healthy", True)
    assert len(found["layers"]) == 5
    for layer in found["layers"]:
        heads = layer["heads"]
        assert {len(values) for values in heads.values()} == {6}
        for name in ("entropy", "sink", "lazy_k", "max_logit", "reach", "nearest", "row_sum"):
            assert all(isinstance(value, int | float) for value in heads[name]), name
        assert len(layer["states"]["value_residual"]) == 2
        gradients = layer["gradients"]
        assert [len(gradients[name]) for name in ("query", "key", "value")] == [6, 2, 2]
        assert all(value > 0 for value in gradients["query"])
    assert found["text"] == {"source": "the built-in text", "rows": [24]}
    assert found["environment"]["versions"]["jax"]


def test_an_error_is_the_exit_code_and_its_page_is_there(tmp_path: Path) -> None:
    convert(scaled(30, "self_attn.q_proj", "self_attn.k_proj", layer=2), tmp_path / "hot", to="hf")
    said = run("health", str(tmp_path / "hot"), *SHORT, code=1)
    assert said.startswith("faulty: 1 error, 1 warning in ")
    assert "error: entropy-collapse: layer 2, heads 0-5: " in said
    assert "  value 1, threshold 0.5 (heuristic); Zhai et al. 2023" in said
    assert said.rstrip().endswith("more: parity explain entropy-collapse")
    page = run("explain", "entropy-collapse")
    assert page.startswith("# entropy-collapse: ") and "Rank collapse is the opposite" in page
    assert run("explain", "rank_collapse").startswith("# rank-collapse: ")


@pytest.mark.parametrize("subject", ["torch", "hf", "stacked"])
def test_any_named_subject_is_measured(subject: str) -> None:
    ours, other = (
        parity.check_health("tiny", subject=name, length=20, gradients=name == "torch")
        for name in ("jaxllama", subject)
    )
    assert other.subject.endswith(subject) or subject in other.subject
    for one, two in zip(ours.layers, other.layers, strict=True):
        assert one.heads is not None and two.heads is not None
        for name in ("entropy", "sink", "reach", "max_logit"):
            np.testing.assert_allclose(
                getattr(one.heads, name), getattr(two.heads, name), rtol=1e-3, atol=1e-5
            )
    assert (other.gradients is not None) == (subject == "torch")


def test_a_kernel_without_weights_is_measured_as_far_as_it_shows_itself() -> None:
    report = parity.check_health("tiny", subject="blockwise", length=20, gradients=False)
    assert all(one.heads is None and one.states is not None for one in report.layers)
    assert any("does not show layers.attn_probs" in note for note in report.notes)
    assert run("health", "tiny", "--subject", "blockwise", *SHORT).startswith("healthy")


def test_an_adapted_model_is_measured_and_its_leak_found() -> None:
    checkpoint = tiny(rope_scaling=None)
    subject = from_torch(
        llamas.hf_model(checkpoint),
        names=llamas.HF_NAMES,
        call=llamas.hf_call,
        config=checkpoint.config,
        dtype="f32",
    )
    report = parity.check_health(checkpoint, subject=subject, length=20)
    assert report.verdict == "healthy" and report.layers[0].heads is not None
    assert any("shows no gradients" in note for note in report.notes)


def test_a_captured_trace_is_measured_on_its_own_inputs(tmp_path: Path, text: Path) -> None:
    options = {"scenarios": "left_padded,packed", "length": 19, "dtypes": "f32"}
    parity.capture("tiny", tmp_path / "traces", **options)
    report = parity.check_health("tiny", subject=str(tmp_path / "traces"))
    assert (report.verdict, report.text) == ("healthy", "the captured trace")
    assert report.rows[:3] == [19, 12, 6] and len(report.rows) == 6
    said = refused(subject=str(tmp_path / "traces"), text=text, length=9)
    assert said.endswith("a captured trace has texts of its own; leave out text, length")
    with pytest.raises(InputError, match=r"a trace of 5 layers, and .* has 3"):
        parity.check_health(tiny(num_hidden_layers=3), subject=str(tmp_path / "traces"))


@pytest.mark.parametrize("subject", ["jaxllama", "hf"])
def test_lines_of_a_file_are_rows(subject: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "the first of these texts"}\n\n"the second, longer than it"\n')
    report = parity.check_health("tiny", subject=subject, text=path, gradients=False)
    assert report.verdict == "healthy"
    assert len(report.rows) == 2 and report.rows[0] < report.rows[1]
    assert "".join(report.texts[0]).startswith("the first of these texts")


def test_texts_that_are_none(tmp_path: Path) -> None:
    def said(content: bytes, name: str = "text.txt") -> str:
        (tmp_path / name).write_bytes(content)
        found = refused(text=tmp_path / name)
        assert found.startswith(f"{tmp_path / name}"), found
        return found.removeprefix(f"{tmp_path / name}")

    assert said(b"") == said(b" \n\n ") == ": holds no text; give a file with some"
    assert said(b"ab") == ": the text has 2 tokens, expected at least 8; give a longer one"
    assert said(b"good\nbad \xff\xfe") == (
        ": byte 0xff at offset 9, line 2, is not UTF-8; save the text as UTF-8"
    )
    lines = b'{"text": "long enough for it"}\n{"text": \n'
    assert said(lines, "a.jsonl") == ": line 2 is no JSON: Expecting value at column 10"
    lines = b'"\\ud83d\\ude00 is whole, and long enough"\n"\\ud800 is not, long as it is"\n'
    assert said(lines, "a.jsonl").startswith(": line 2 has a lone surrogate, which is no text")
    lines = b'{"text": "long enough for it"}\n{"txt": "x"}\n17\n'
    found = said(lines, "a.jsonl")
    assert "line 2 is an object with txt, expected an object with a text" in found
    assert "line 3 is 17, expected an object with a text" in found
    assert said(b'"long enough for it"\n"short"\n', "a.jsonl") == (
        ": text 2 has 5 tokens, expected at least 8; give a longer one"
    )
    assert "does not exist" in str(_error(tmp_path / "nowhere.txt"))
    assert "is a directory, expected a file" in str(_error(tmp_path))


def _error(path: Path) -> Exception:
    with pytest.raises((InputError, CheckpointError)) as found:
        parity.check_health("tiny", text=path)
    return found.value


@pytest.mark.parametrize("subject", ["jaxllama", "torch"])
def test_weights_that_are_no_numbers_are_named(subject: str) -> None:
    whole = tiny()
    weights = {name: whole.read(name).copy() for name in whole.tensors}
    weights["model.layers.2.mlp.up_proj.weight"][3, 5] = np.nan
    spoilt = in_memory(whole.config, weights, companions=companions(whole))
    with pytest.raises(CheckpointError) as found:
        parity.check_health(spoilt, subject=subject, length=20)
    assert str(found.value) == (
        "memory checkpoint: model.layers.2.mlp.up_proj.weight: 1 elements NaN or infinite, the "
        "first (NaN) at (3, 5)"
    )


@pytest.mark.parametrize("subject", ["jaxllama", "torch"])
def test_nan_that_no_text_reads_is_named_whoever_runs(subject: str) -> None:
    whole = tiny()
    weights = {name: whole.read(name).copy() for name in whole.tensors}
    weights["model.embed_tokens.weight"][255] = np.nan
    broken = in_memory(whole.config, weights, companions=companions(whole))
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight: 96 elements NaN"):
        parity.check_health(broken, subject=subject, length=16, gradients=False)


def test_a_pass_that_overflows_is_told_from_spoilt_weights() -> None:
    huge = scaled(1e30, "mlp.up_proj", "mlp.down_proj", layer=1)
    with pytest.raises(InputError, match=r"^layers\.1\.output is not finite at row 0, token 0 in "):
        parity.check_health(huge, length=20)


def test_options_that_do_not_fit(tmp_path: Path, text: Path) -> None:
    assert refused(length=7) == "length=7: expected at least 8 tokens"
    assert refused(dtype="f32,bf16") == "dtype='f32,bf16': one dtype is measured at a time"
    assert refused(paired=True).startswith("paired=True: compares two groups of texts; ")
    assert "num_hidden_layers 3, here 5" in refused(baseline=tiny(num_hidden_layers=3))
    bare = open_checkpoint("tiny")
    no_tokenizer = in_memory(bare.config, {name: bare.read(name) for name in bare.tensors})
    with pytest.raises(InputError, match="has no tokenizer for the prompt"):
        parity.check_health(no_tokenizer, text=text)


def test_remedies_typed_as_said_work(tmp_path: Path) -> None:
    assert "tokens were taken (--length)" in run("health", "tiny", *SHORT)
    texts = [json.dumps(f"text number {i}, of some length") for i in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(texts))
    both = ["--text", str(tmp_path / "a.jsonl"), "--against", str(tmp_path / "a.jsonl")]
    assert "give --against too" in run("health", "tiny", "--token", "n", code=2)
    assert "no head differs" in run("health", "tiny", *both, "--token", "n", *SHORT)
    convert(scaled(1e30, "mlp.up_proj", "mlp.down_proj", layer=1), tmp_path / "huge", to="hf")
    huge = ["health", str(tmp_path / "huge"), *SHORT]
    assert run(*huge, code=2).rstrip().endswith("; run it with --dtype f64")
    assert run(*huge, "--dtype", "f64").startswith("suspect: ")


def test_a_mask_is_given_as_a_spec() -> None:
    assert "`causal() + 1` is not part of one" in run(
        "health", "tiny", "--mask", "causal() + 1", code=2
    )
    said = run("health", "tiny", *SHORT, "--mask", "causal() & window(4)", code=1)
    assert "error: leakage: layer 0, heads 0-5: weight " in said


def test_texts_are_no_longer_than_the_context() -> None:
    short = tiny(max_position_embeddings=16)
    assert parity.check_health(short, gradients=False).rows == [16]
    with pytest.raises(InputError, match=r"^length: 17 tokens, and .* give at most length=16"):
        parity.check_health(short, length=17, gradients=False)
    assert parity.check_health(short, length=16, gradients=False).rows == [16]


def test_bfloat16_is_sound_too() -> None:
    report = parity.check_health("tiny", dtype="bf16", length=64)
    assert (report.verdict, report.dtype) == ("healthy", "bf16")


def test_every_rule_is_explained() -> None:
    for rule in catalogue():
        assert run("explain", rule).startswith(f"# {rule}: ")
