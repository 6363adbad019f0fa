"""The command line: exit codes, one message for bad input, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pytest
from witnesses import on_disk

from jaxllama.checkpoint.samples import tiny
from parity import cli

SMALL = ["tiny", "--dtype", "f64", "--scenario", "causal", "--length", "7"]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs the command as installed, in this process."""

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["parity", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return Outcome(stopped.value.code, captured.out, captured.err)

    return call


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a checkpoint is so much as opened."""

    def opened(*_: object) -> None:
        raise AssertionError("work began before the options were checked")

    monkeypatch.setattr("parity.runner.run.open_checkpoint", opened)


def shown_in_readme(verdict: str) -> str:
    """Return what README shows of a run that ends so."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (found,) = re.findall(rf"^```\n({verdict}: .*?)^```", text, re.MULTILINE | re.DOTALL)
    return found


def outline(said: str) -> list[str]:
    """Return the lines below the first without their figures, which hang on the run's length."""
    below = takewhile(str.strip, said.splitlines()[1:])  # tables follow a blank line
    lines = [re.sub(r"-?\d[\d.]*(e[+-]?\d+)?", "#", line) for line in below]
    # One may be missing, of one scenario more is not run, one is shortened.
    left_out = "largest element", "not run: ", "machine: "
    return [line for line in lines if not any(said in line for said in left_out)]


def test_equal(parity, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    ran = parity("run", *SMALL, "--json", str(path))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("equal: 96 taps in f64 against torch")
    document = json.loads(path.read_text())
    assert document["verdict"] == "equal"
    assert document["coverage"]["compared"] == document["coverage"]["expected"] == 96
    assert "--length 7" in document["command"]


def test_divergent(parity) -> None:
    ran = parity("run", *SMALL, "--override", "rope_theta=1e6")
    assert ran.code == 1
    first, left, machine, where = ran.out.splitlines()[:4]
    assert left.startswith(
        "not run: decode; gradients; training step; generation; tokenizer; "
        "scenarios long_positions, "
    )
    assert first.startswith("divergent: ") and first.endswith("layers.0.q_rope (meaning)")
    assert machine.startswith("machine: ") and "layers.0.q_rope" in where
    assert "flagged: rope.inv_freq" in ran.out
    assert outline(shown_in_readme("divergent")) == outline(ran.out)


@pytest.mark.parametrize("verdict", ["equal", "divergent"])
def test_readme_says_what_the_default_run_leaves_out(parity, verdict: str) -> None:
    ran = parity("run", "tiny", "--dtype", "f64", "--length", "7")
    assert shown_in_readme(verdict).splitlines()[1] == ran.out.splitlines()[1]


def test_an_outline_keeps_words_and_drops_figures() -> None:
    said = "divergent: 96 taps in f64\n error 1.2e-15: a\n largest element: 3"
    assert outline(said) == [" error #: a"]
    assert outline("a\n error 1.2e-15: b") != outline(said)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dtype", "f8"], "--dtype f8: expected one or more of f64, f32, bf16"),
        (["--mode", "fast"], "--mode fast"),
        (["--reference", "jax"], "--reference jax"),
        (["--scenario", "nightmare"], "--scenario nightmare"),
        (["--dtype", ""], "--dtype (nothing)"),
    ],
)
def test_wrong_values_are_refused_with_the_right_ones(
    parity, options: list[str], said: str
) -> None:
    ran = parity("run", "tiny", *options)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("parity: ") and said in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "tiny", "--nonsense"],
        ["fly"],
        ["run", "tiny", "--length", "many"],
        ["run", "a", "b"],
    ],
)
def test_wrong_usage(parity, arguments: list[str]) -> None:
    assert parity(*arguments).code == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--length", "0"], "length 0"),
        (["--tokens", "1,two"], "--tokens '1,two': expected whole numbers"),
        (["--tokens", "1,9999"], "token id 9999 at index 1"),
        (["--tokens", "1", "--prompt", "a"], "give one of them"),
        (["--override", "rope_thet=1e6"], "did you mean rope_theta?"),
        (["--override", "rope_theta=-1"], "rope_theta"),
        (["--override", "hidden_size=64"], "hidden_size"),
    ],
)
def test_input_that_cannot_be_run(parity, options: list[str], said: str) -> None:
    ran = parity("run", "tiny", "--dtype", "f64", "--scenario", "causal", *options)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("parity: ") and said in ran.err
    assert "Traceback" not in ran.err


def test_a_missing_checkpoint(parity, tmp_path: Path) -> None:
    ran = parity("run", str(tmp_path / "nowhere"))
    assert ran.code == 2 and "nowhere" in ran.err and ran.err.count("\n") == 1


def test_a_truncated_file_is_named_with_both_sizes(parity, tmp_path: Path) -> None:
    on_disk(tiny(num_hidden_layers=1), tmp_path)
    file, out = tmp_path / "model.safetensors", tmp_path / "out.json"
    whole = file.stat().st_size
    os.truncate(file, whole - 1000)
    ran = parity("run", str(tmp_path), "--json", str(out))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1, ran.err
    for fact in ("model.safetensors", str(whole), str(whole - 1000)):
        assert fact in ran.err.replace(",", "").replace("_", "")
    assert not out.exists()


@pytest.mark.usefixtures("no_work")
def test_an_unwritable_report_is_refused_before_any_work(parity, tmp_path: Path) -> None:
    ran = parity("run", "tiny", "--json", str(tmp_path / "missing" / "out.json"))
    assert ran.code == 2 and "missing" in ran.err
    ran = parity("run", "tiny", "--json", str(tmp_path))
    assert ran.code == 2 and "is a directory" in ran.err
    assert os.listdir(tmp_path) == []


def test_a_failed_run_leaves_no_report(parity, tmp_path: Path) -> None:
    ran = parity("run", "tiny", "--prompt", "", "--json", str(tmp_path / "out.json"))
    assert ran.code == 2 and os.listdir(tmp_path) == []


def test_an_interrupt_has_a_word_and_leaves_nothing(
    parity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "parity.lockstep.engine.release_freed_memory", lambda: signal.raise_signal(signal.SIGINT)
    )
    ran = parity("run", *SMALL, "--json", str(tmp_path / "out.json"))
    assert (ran.code, ran.out, ran.err) == (130, "", "interrupted; nothing was written\n")
    assert os.listdir(tmp_path) == []


def test_an_interrupted_report_names_those_that_are_there(
    parity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("parity.report.html_file.write", interrupted)
    paths = tmp_path / "a.json", tmp_path / "b.html"
    ran = parity("run", *SMALL, "--json", str(paths[0]), "--html", str(paths[1]))
    assert (ran.code, ran.err) == (130, f"interrupted; {paths[0]} was written\n")
    assert os.listdir(tmp_path) == ["a.json"]
