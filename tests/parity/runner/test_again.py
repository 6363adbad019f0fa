"""`again:` repeats the run that was made, its subject included."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import jax_subjects
import pytest
from typer.testing import CliRunner
from written_checkpoints import model, write_hf

import parity
from jaxllama.model import Llama
from parity.cli import app
from parity.diagnose.search import SECONDS
from parity.report.wording import headline
from parity.runner.again import describe_again
from parity.runner.plan import make_plan
from parity.subjects.jaxllama.subject import JaxLlama

PROMPT = [3, 1, 2, 5, 4, 9, 8]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(model(), tmp_path_factory.mktemp("again") / "small model")


class Wrong:
    @staticmethod
    def theta(loaded: Llama, lane: str) -> JaxLlama:
        return jax_subjects.quantised(loaded, lane)


def again(subject: Any, checkpoint: Any = "tiny", **options: Any) -> str:
    """Return what is said of a run, without making it."""
    plan = make_plan(
        options.get("reference", "torch"),
        options.get("dtypes", "f64"),
        options.get("modes"),
        options.get("scenarios", "causal"),
        options.get("overrides", ()),
    )
    return describe_again(
        checkpoint,
        plan,
        prompt=options.get("prompt"),
        length=options.get("length"),
        subject=subject,
        mesh=options.get("mesh"),
        stream=options.get("stream", False),
        seconds=options.get("seconds", SECONDS),
    )


def test_the_command_makes_the_same_run(saved: Path) -> None:
    options: dict[str, Any] = {"dtypes": "f32", "modes": "free,isolated", "scenarios": "causal"}
    options |= {"prompt": PROMPT, "seconds": 0.5}
    result = parity.run(saved, subject=jax_subjects.quantised, **options)
    assert result.verdict == "divergent"
    program, *arguments = shlex.split(result.command)
    assert program == "parity"
    repeated = CliRunner().invoke(app, arguments)
    assert repeated.exit_code == 1, repeated.output
    assert repeated.output.startswith(headline(result))


def test_the_call_makes_the_same_run() -> None:
    checkpoint, subject = model(), lambda loaded, lane: JaxLlama(loaded, lane)
    options: dict[str, Any] = {"dtypes": "f64", "modes": "free", "prompt": PROMPT}
    result = parity.run(checkpoint, subject=subject, overrides=(), **options)
    assert "checkpoint the one in memory" in result.command
    call, _, remark = result.command.partition("  # ")
    assert "subject the function" in remark
    repeated = eval(call, {"parity": parity, "checkpoint": checkpoint, "subject": subject})
    assert headline(repeated) == headline(result)


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        ("jaxllama", "parity run tiny --reference torch --dtype f64 --scenario causal"),
        ("hf", " --subject hf"),
        (jax_subjects.sharded, " --subject jax_subjects:sharded"),
        (JaxLlama, " --subject parity.subjects.jaxllama.subject:JaxLlama"),
        (Wrong.theta, f" --subject {Wrong.__module__}:Wrong.theta"),
        (lambda loaded, lane: loaded, "subject the function "),
        ({"f64": None}, "subject the dict that was given"),
    ],
)
def test_a_subject_is_named_as_it_can_be_found(subject: Any, said: str) -> None:
    assert said in again(subject)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": "two words"}, ["--prompt", "two words"]),
        ({"prompt": PROMPT}, ["--tokens", "3,1,2,5,4,9,8"]),
        ({"overrides": ["rope_theta=1e6", "rms_norm_eps=1e-6"]}, ["--override", "rope_theta=1e6"]),
        ({"modes": "free"}, ["--mode", "free"]),
        ({"length": 9}, ["--length", "9"]),
        ({"stream": True, "seconds": 7.5}, ["--stream", "--seconds", "7.5"]),
    ],
)
def test_what_was_asked_for_is_said(options: dict[str, Any], words: list[str]) -> None:
    said = shlex.split(again("jaxllama", **options))
    at = said.index(words[0])
    assert said[at : at + len(words)] == words
