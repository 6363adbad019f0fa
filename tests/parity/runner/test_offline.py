"""Captures, their comparison elsewhere, and judging saved figures again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import result, row
from witnesses import changed, small, steps

import parity
from jaxllama.errors import InputError, JaxLlamaError
from parity import cli
from parity.report import json_file
from parity.result import Result
from parity.runner import recheck
from parity.subjects.jaxllama.run import JaxRun
from parity.subjects.jaxllama.subject import JaxLlama
from parity.subjects.traces import TraceSubject, from_traces
from parity.trace import TraceWriter, read_capture, read_trace

ROOT = Path(__file__).parents[3]
RUN: dict[str, Any] = {"dtypes": "f64,f32", "scenarios": "right_padded", "length": 9}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captures of one checkpoint: `jax` with both modes, `torch` as reference, `wrong` theta."""
    here = tmp_path_factory.mktemp("captures")
    parity.capture(small(), here / "jax", modes="free,decode", **RUN)
    parity.capture(small(), here / "torch", subject="torch", modes="free,decode", **RUN)
    parity.capture(small(), here / "wrong", overrides=["rope_theta=1e6"], **RUN)
    return here


@pytest.fixture(scope="module")
def live() -> Result:
    return parity.run(small(), modes="free", **RUN)


@pytest.fixture
def damaged(made: Path, tmp_path: Path) -> Iterator[Path]:
    """One trace of the JAX capture, alone in a directory of its own."""
    path = tmp_path / "captured" / "f64-right_padded-free-jaxllama.safetensors"
    path.parent.mkdir()
    shutil.copy(made / "jax" / path.name, path)
    return path


def figures(result: Result, mode: str = "free") -> dict[tuple[str, str], tuple[float, float]]:
    return {(r.lane, r.tap): (r.error, r.rho) for r in result.rows if r.mode == mode}


def test_two_captures_are_judged_as_a_run_is(made: Path, live: Result) -> None:
    result = parity.compare(made / "jax", made / "torch")
    assert (result.verdict, result.exit_code) == ("equal", 0)
    assert figures(result) == figures(live)
    assert {row.mode for row in result.rows} == {"free", "decode"}
    assert result.compared == result.expected
    gaps = {(w.lane, w.mode): w.subject_gap for w in result.witnesses}
    assert 0 < gaps["f64", "free"] < 1e-12 < gaps["f32", "free"] < 1e-5


def test_a_capture_of_one_run_gives_noise_and_is_no_witness(made: Path) -> None:
    result = parity.compare(made / "torch", made / "jax")
    assert result.verdict == "equal"
    assert {w.lane for w in result.witnesses} == {"f64"}
    assert any("holds one run alone at f32" in note for note in result.notes)
    both = parity.compare(made / "jax", made / "torch")
    assert {w.lane for w in both.witnesses} == {"f64", "f32"}
    assert not any("one run alone" in note for note in both.notes)


def test_a_wrong_capture_is_caught_and_placed(made: Path) -> None:
    result = parity.compare(made / "wrong", made / "torch")
    assert (result.verdict, result.exit_code) == ("divergent", 1)
    assert result.first_divergence is not None
    assert result.first_divergence.row.tap == "layers.0.q_rope"
    assert any("parity run" in note and "--subject" in note for note in result.notes)


def test_a_capture_is_judged_by_a_live_reference_with_its_cause(made: Path) -> None:
    options = {**RUN, "dtypes": "f64", "modes": "free"}
    assert parity.run(small(), subject=str(made / "jax"), **options).verdict == "equal"
    usual = {**RUN, "dtypes": "f64", "modes": None}
    held = from_traces(made / "jax")
    result = parity.run(small(), subject=held, **usual)
    assert {row.mode for row in result.rows} == {"free", "decode"}
    assert result.not_run[0] == "isolated (the subject takes no values)"
    held["f64"].captured = frozenset({("right_padded", "free")})
    result = parity.run(small(), subject=held, **usual)
    assert result.not_run[1] == "decode (the subject shows no cache)"
    result = parity.run(small(), subject=from_traces(made / "wrong"), **options)
    assert result.first_divergence is not None and result.cause is not None
    assert result.first_divergence.row.tap == "layers.0.q_rope"
    assert result.cause.id == "rope-theta" and result.cause.confirmed


def test_a_trace_keeps_every_bit(made: Path) -> None:
    trace = read_trace(made / "jax" / "f32-right_padded-free-jaxllama.safetensors")
    from jaxllama import Llama

    run = JaxLlama(Llama.from_pretrained(small(), dtype="float32"), "f32").start(trace.inputs)
    shown = steps(run)
    held = {name: array for stage in trace for name, array in stage.items()}
    assert list(held) == list(shown)
    assert all(held[n].dtype == shown[n].dtype and (held[n] == shown[n]).all() for n in shown)
    precision = trace.info.environment["matmul_precision"]
    assert precision["float32_at_highest"] == "float32"
    assert trace.info.inputs_sha256 == trace.inputs.digest()


@pytest.mark.parametrize("other", ["inputs", "weights", "no gold", "nothing in common"])
def test_captures_that_say_nothing_of_each_other_are_refused(
    made: Path, tmp_path: Path, other: str
) -> None:
    def nudge(weights: dict[str, np.ndarray]) -> None:
        weights["model.norm.weight"][2] += 1e-3

    options = {**RUN, "dtypes": "f64"}
    checkpoint, said = small(), other
    if other == "inputs":
        options["length"], said = 10, "other inputs"
    elif other == "weights":
        checkpoint, said = changed(checkpoint, nudge), "other weights"
    elif other == "no gold":
        options["dtypes"], said = "f32", "no float64 run"
    else:
        options["scenarios"] = "causal"
    parity.capture(checkpoint, tmp_path / "other", subject="torch", **options)
    with pytest.raises(InputError, match=said):
        parity.compare(made / "jax", tmp_path / "other")


def test_what_only_the_subject_holds_leaves_the_verdict_open(made: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(made / "torch", part, ignore=shutil.ignore_patterns("*decode*"))
    result = parity.compare(made / "jax", part)
    assert (result.verdict, result.exit_code) == ("inconclusive", 3)
    assert "f64 right_padded decode" in result.unmatched


def test_what_only_the_reference_holds_is_said(made: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(made / "jax", fewer)
    (fewer / "f64-right_padded-free-jaxllama.safetensors").unlink()
    result = parity.compare(fewer, made / "torch")
    assert f"{fewer} holds no run f64 right_padded free: not judged" in result.notes
    lost = f"f64 right_padded free (captured, and missing in {fewer})"
    assert (result.verdict, result.unmatched) == ("inconclusive", (lost,))
    whole = parity.compare(made / "jax", made / "torch")
    assert not any("not judged" in note for note in whole.notes)


def test_a_trace_that_does_not_say_what_it_was_captured_with(made: Path, tmp_path: Path) -> None:
    """Of which nobody knows what is missing."""
    silent = tmp_path / "silent"
    shutil.copytree(made / "jax", silent)
    name = "f64-right_padded-free-jaxllama.safetensors"
    trace = read_trace(silent / name)
    with TraceWriter(silent / name, trace.inputs) as writer:
        for stage in trace:
            writer.stage(stage)
        writer.close(replace(trace.info, together=()))
    result = parity.compare(silent, made / "torch")
    assert result.verdict == "inconclusive"
    assert [one for one in result.unmatched if "it does not say which" in one and name in one]


def turned(path: Path, tap: str) -> None:
    """Give a tap of a trace its axes in another order, which no checksum tells."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    shape = header[tap]["shape"]
    header[tap]["shape"] = [*shape[1:], shape[0]]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize("tap", ["1/layers.0.attn_probs", "1/layers.0.q_proj", "0/embed"])
def test_axes_out_of_order_in_a_reference_are_refused_and_in_a_subject_a_finding(
    made: Path, tmp_path: Path, tap: str
) -> None:
    shutil.copytree(made / "jax", tmp_path / "turned")
    turned(tmp_path / "turned" / "f64-right_padded-free-jaxllama.safetensors", tap)
    with pytest.raises(InputError, match=r"has shape .*, expected B \d"):
        parity.compare(made / "torch", tmp_path / "turned")
    assert parity.compare(tmp_path / "turned", made / "torch").verdict == "divergent"


def test_an_undeclared_gap_in_a_capture_leaves_the_verdict_open(damaged: Path, made: Path) -> None:
    trace = read_trace(damaged)
    with TraceWriter(damaged, trace.inputs) as writer:
        for stage in trace:
            stage.pop("layers.1.up_proj", None)
            writer.stage(stage)
        writer.close(trace.info)
    result = parity.compare(damaged.parent, made / "torch")
    assert result.verdict == "inconclusive"
    assert [name for name in result.unmatched if "captured" not in name] == ["layers.1.up_proj"]


def test_what_is_missing_on_both_sides_leaves_the_verdict_open(made: Path, tmp_path: Path) -> None:
    for name in ("jax", "torch"):
        shutil.copytree(made / name, tmp_path / name)
        for path in (tmp_path / name).iterdir():
            trace = read_trace(path)
            with TraceWriter(path, trace.inputs) as writer:
                for stage in trace:
                    writer.stage({k: v for k, v in stage.items() if k != "layers.1.up_proj"})
                writer.close(trace.info)
    result = parity.compare(tmp_path / "jax", tmp_path / "torch")
    assert (result.verdict, result.unmatched) == ("inconclusive", ("layers.1.up_proj",))


def test_a_file_that_is_damaged_anywhere_is_one_line(damaged: Path, made: Path) -> None:
    whole = damaged.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    broken = {
        "empty": b"",
        "cut": whole[:-7],
        "cut in its header": whole[: header // 2],
        "longer": whole + b"1234",
        "garbage": b"not a trace at all, but text",
        "data": whole[:-90] + bytes([whole[-90] ^ 4]) + whole[-89:],
        "inputs": whole[: header + 1] + bytes([whole[header + 1] ^ 4]) + whole[header + 2 :],
        "format": whole.replace(b'\\"format\\": 1', b'\\"format\\": 7'),
        "description": whole.replace(b'\\"layers\\": 3', b'\\"layers\\": 4'),
        "key": whole.replace(b"parity_trace", b"parity_grace"),
    }
    for what, content in broken.items():
        assert content != whole, what
        damaged.write_bytes(content)
        with pytest.raises(InputError) as caught:
            parity.compare(damaged.parent, made / "torch")
        assert "\n" not in str(caught.value) and str(damaged) in str(caught.value), what
    damaged.unlink()
    with pytest.raises(InputError, match="no traces"):
        read_capture(damaged.parent)
    with pytest.raises(InputError, match="not a directory"):
        read_capture(damaged)


class _Interrupted(JaxLlama):
    def start(self, inputs: Any) -> JaxRun:
        raise KeyboardInterrupt


def test_a_capture_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        parity.capture(small(), tmp_path / "out", subject=_Interrupted, **RUN)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_made_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for target in (tmp_path / "file" / "out", tmp_path / "full"):
        with pytest.raises(JaxLlamaError):
            parity.capture(small(), target, subject=_Interrupted, **RUN)


def test_decoded_pieces_must_be_the_same(made: Path) -> None:
    subject = from_traces(made / "jax")["f64"]
    assert isinstance(subject, TraceSubject)
    trace = read_trace(made / "jax" / "f64-right_padded-decode-jaxllama.safetensors")
    with pytest.raises(InputError, match="decoded in pieces"):
        subject.start_decode(trace.inputs, [4, 5])


# In another process: what has been imported here already would hide what is needed.
COMPARE = "from parity import compare; assert compare({!r}, {!r}).verdict == 'equal'"
CAPTURE = "from parity import capture; capture('tiny', {!r}, dtypes='f32', length=5)"


@pytest.mark.parametrize("command", ["compare", "capture"])
def test_what_is_not_needed_is_not_imported(made: Path, tmp_path: Path, command: str) -> None:
    code = COMPARE.format(str(made / "jax"), str(made / "torch"))
    unwanted = "'torch', 'transformers', 'jax', 'flax'"
    if command == "capture":
        code, unwanted = CAPTURE.format(str(tmp_path / "out")), "'torch', 'transformers'"
    code += f"; import sys; assert not {{{unwanted}}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def saved(live: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "result.json"
    json_file.write(live, path)
    return path


def test_saved_figures_give_the_same_verdict_again(saved: Path, live: Result) -> None:
    again = parity.recheck(saved)
    assert again.verdict == "equal"
    assert again.rows == live.rows and again.witnesses == live.witnesses


def test_saved_figures_are_judged_by_the_limits_asked_for(saved: Path, live: Result) -> None:
    most = max(row.rho for row in live.rows if row.lane == "f32" and row.tap != "logits")
    strict = parity.recheck(saved, limits=[f"f32.free={most * 0.99}"])
    assert strict.first_divergence is not None
    assert strict.first_divergence.row.rho >= most * 0.99
    assert strict.first_divergence.row.lane == "f32"
    assert strict.tolerance["lanes"]["f32"]["free"] == most * 0.99
    loose = parity.recheck(saved, limits=["1e-9", f"f32={most * 9}", "f64=1e9"])
    assert loose.verdict == "equal"


@pytest.mark.parametrize("told", ["computation", "rounding"])
def test_what_a_confirmed_cause_told_is_kept(told: Any, tmp_path: Path) -> None:
    coarse = row("layers.0.q_proj", lane="bf16", rho=18.0, limit=16.0, error=0.1, noise=0.0055)
    found = result([row("layers.0.q_proj"), coarse])
    assert found.first_divergence is not None
    assert found.first_divergence.difference == "rounding"  # figures alone say no more
    found.first_divergence = replace(found.first_divergence, difference=told)
    path = tmp_path / "result.json"
    json_file.write(found, path)
    again = parity.recheck(path)
    assert (again.verdict, again.difference) == ("divergent", told)


def test_what_no_tolerance_excuses_stays_a_failure(saved: Path, tmp_path: Path) -> None:
    document = json.loads(saved.read_text())
    document["taps"][7] |= {"problems": ["3 elements are NaN"], "error": "inf", "rho": "nan"}
    path = tmp_path / "spoiled.json"
    path.write_text(json.dumps(document))
    result = recheck.recheck(path, limits=["1e30"])
    assert result.first_divergence is not None
    assert result.first_divergence.row.tap == document["taps"][7]["tap"]


@pytest.mark.parametrize(
    "limit", ["", "x", "f32=", "f16=3", "f32.decode=3", "=-1", "=3", "nan", "inf", "1e999", "0"]
)
def test_limits_that_cannot_be_read(saved: Path, limit: str) -> None:
    with pytest.raises(InputError, match="limits"):
        parity.recheck(saved, limits=[limit])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty; write it again"),
        ("<!DOCTYPE html>", "is a web page, as a failed download leaves; write it again"),
        ("version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
        ("[]", "a JSON list, expected an object; write it again by parity run --json"),
        ("{}", "schema_version None, expected 1.x"),
        ('{"schema_version": "9.0"}', "schema_version '9.0', expected 1.x"),
        ('{"schema_version": "1.0"}', "'taps' is missing"),
        ('{"schema_version": ', "not valid JSON"),
        ("[" * 99999, "JSON nested too deep"),
    ],
)
def test_files_that_are_no_result(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"result\.json: .*" + re.escape(said)):
        parity.recheck(path)


def test_the_commands(
    made: Path,
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["parity", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        output = capsys.readouterr()
        return int(left.value.code or 0), (output.out or output.err).splitlines()[0]

    out = tmp_path / "out"
    options = ("-o", out, "--length", 5, "--dtype", "f64", "--scenario", "causal")
    code, said = run("capture", "tiny", *options)
    assert code == 0 and said.startswith("captured: 1 trace,")
    code, said = run("capture", "tiny", *options)
    assert code == 2 and "exists already; remove it or choose another" in said
    assert "overwrite" not in said
    code, said = run("compare", made / "wrong", made / "torch", "--json", tmp_path / "c.json")
    assert code == 1 and said.startswith("divergent")
    assert json.loads((tmp_path / "c.json").read_text())["verdict"] == "divergent"
    code, said = run("compare", made / "jax", tmp_path / "nowhere")
    assert code == 2 and said.startswith("parity: ") and "nowhere" in said
    code, said = run("recheck", saved, "--limit", "f32=1e-3")
    assert code == 1 and said.startswith("divergent")
    code, said = run("recheck", saved, "--json", tmp_path / "no" / "r.json")
    assert code == 2 and "no directory" in said
