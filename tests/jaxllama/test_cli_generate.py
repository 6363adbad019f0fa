"""`jaxllama generate`: what it prints where, and how it fails."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import pytest

from jaxllama import text
from jaxllama.checkpoint import tiny
from jaxllama.cli import main
from jaxllama.model import Llama
from jaxllama.sampling import Sampling
from jaxllama.text import generate_text

LENGTH = ["--max-tokens", "9"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["generate", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, out, err


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What the same call gives from Python."""
    model = Llama.from_pretrained(tiny(), dtype=jnp.float32)
    found = generate_text(model, tiny().tokenizer(), "Ab", max_new_tokens=9)
    return {"text": found.texts[0], "tokens": found.generation.rows()[0]}


def test_text_goes_to_stdout_and_speed_to_stderr(
    capsys: pytest.CaptureFixture[str], expected: dict[str, Any]
) -> None:
    code, out, err = run(capsys, "tiny", "Ab", *LENGTH)
    assert (code, out) == (0, expected["text"] + "\n")
    assert "9 tokens, the first after" in err and "tokens/s; ended by length]" in err
    assert run(capsys, "tiny", "Ab", *LENGTH, "--quiet") == (0, out, "")


def test_special_tokens_in_a_prompt_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "tiny", "A<|end_of_text|>b", *LENGTH, "--quiet")
    assert code == 0
    assert err.startswith(
        "note: '<|end_of_text|>' in the prompt is read as a special token; --chat"
    )
    assert run(capsys, "tiny", "A<|end_of_text|>b", *LENGTH, "--quiet", "--chat")[2] == ""


def test_text_is_shown_as_it_comes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def slow(*args: Any, on_text: Any, **options: Any) -> Any:
        def watch(row: int, text: str) -> None:
            on_text(row, text)
            shown.append(capsys.readouterr().out)

        return generate_text(*args, on_text=watch, **options)

    monkeypatch.setattr(text, "generate_text", slow)
    assert run(capsys, "tiny", "Ab", *LENGTH, "--quiet") == (0, "\n", "")
    assert len(shown) >= 9
    assert len([piece for piece in shown if piece]) > 2


def test_the_prompt_may_come_from_stdin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, expected: dict[str, Any]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Ab"))
    assert run(capsys, "tiny", *LENGTH, "--quiet") == (0, expected["text"] + "\n", "")


def test_json_has_tokens_and_logprobs(
    capsys: pytest.CaptureFixture[str], expected: dict[str, Any]
) -> None:
    code, out, err = run(capsys, "tiny", "Ab", *LENGTH, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert {k: found[k] for k in expected} == expected
    assert len(found["logprobs"]) == 9 and all(x < 0 for x in found["logprobs"])
    assert (found["finish_reason"], found["seed"]) == ("length", 0)


def test_sampling_options_reach_the_sampler(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def record(*_: Any, **options: Any) -> Any:
        seen.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(text, "generate_text", record)
    options = (
        "--temperature 0.7 --top-k 5 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.2 "
        "--seed 4 --stop x --stop yz --ignore-eos --cache-tokens 40"
    )
    # Ctrl-C: the shell's own code for it, a word, and no traceback.
    code, out, err = run(capsys, "tiny", "Ab", *LENGTH, *options.split())
    assert (code, out, err) == (130, "", "interrupted; nothing was written\n")
    assert seen["sampling"] == Sampling(
        temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2
    )
    assert (seen["seed"], seen["stop"], seen["eos_ids"]) == (4, ["x", "yz"], ())
    assert seen["cache"].capacity == 40 and seen["max_new_tokens"] == 9


def test_a_conversation_remembers_its_turns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[list[int]] = []

    def record(model: Any, tokenizer: Any, rows: list[list[int]], **options: Any) -> Any:
        prompts.append(rows[0])
        return generate_text(model, tokenizer, rows, **options)

    monkeypatch.setattr(text, "generate_text", record)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n\nYes?\n"))
    code, out, _ = run(capsys, "tiny", "--chat", "--system", "Be", *LENGTH, "--json")
    first, second = json.loads(out)
    assert code == 0
    template = tiny().tokenizer()
    messages = [{"role": "system", "content": "Be"}, {"role": "user", "content": "Hi"}]
    assert prompts[0] == template.encode_chat(messages)
    messages.append({"role": "assistant", "content": first["text"]})
    messages.append({"role": "user", "content": "Yes?"})
    assert prompts[1] == template.encode_chat(messages)
    assert second["tokens"]


def test_one_answer_to_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "tiny", "Hi", "--chat", *LENGTH, "--json", "--ignore-eos")
    assert code == 0
    assert len(json.loads(out)["tokens"]) == 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny", "Ab", "--top-p", "0.5"], "--top-p would change nothing"),
        (["tiny", "Ab", "--top-k", "-1"], "--top-k -1: expected an integer of at least 1, or none"),
        (["tiny", "Ab", "--temperature", "-1"], "temperature -1.0: expected 0 (greedy) or"),
        (["tiny", "Ab", "--max-tokens", "0"], "--max-tokens 0: expected an integer of at"),
        (["tiny", "Ab", "--cache-tokens", "6"], "cache too small: row 0 needs 2 prompt tokens"),
        (["tiny", "Ab", "--cache-tokens", "0"], "the cache has 0; make it with --cache-tokens 258"),
        (["tiny", ""], "prompt 0 is empty"),
        (["tiny", "Ab", "--stop", ""], "--stop '': expected a text of at least one character"),
        (["tiny", "Ab", "--seed", "-3"], "--seed -3: expected integers from 0"),
        (["tiny", "Ab", "--dtype", "int4"], "--dtype int4: expected one of f64, f32, bf16, f16"),
        (["tiny", "Ab", "--system", "Be"], "--system is a message of a chat; add --chat"),
        (["nowhere", "Ab"], "nowhere: does not exist"),
        (["tiny", "A\udcff"], "text '\\udcff' at character 1: a lone surrogate is no text"),
        (["tiny", "A\udcff", "--chat"], "a lone surrogate is no text; give it in UTF-8"),
    ],
)
def test_bad_input_is_one_clear_message(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out.strip()) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("count", [10**11, 10**23])
def test_more_slots_than_memory_holds_are_refused(
    capsys: pytest.CaptureFixture[str], count: int
) -> None:
    code, out, err = run(capsys, "tiny", "Ab", "--cache-tokens", str(count))
    assert (code, out.strip()) == (2, "")
    assert "of this machine's memory are free; give fewer rows or tokens" in err


def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make loading weights fail."""
    monkeypatch.setattr(Llama, "from_pretrained", lambda *_, **__: pytest.fail("was loaded"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["Ab", "--max-tokens", "131071"],
            "2 prompt tokens + 131071 new ones: 131073 tokens, and the configuration states a "
            "context of 131072 (max_position_embeddings); give --max-tokens 131070, or shorten the "
            "prompt, or raise that field if the model is meant to go further",
        ),
        (["Ab", "--max-tokens", str(10**23)], "give --max-tokens 131070, or shorten the prompt"),
        (["A" * 131_080], "131080 prompt tokens + 1 new ones: 131081 tokens, and the"),
        (["Hi", "--chat", "--max-tokens", "131072"], "new ones: 1310"),
        (["--chat", "--max-tokens", "131073"], "0 prompt tokens + 131073 new ones: 131073 tokens"),
        (["Ab", "--max-tokens", "8", "--cache-tokens", "3"], "make it with --cache-tokens 10 or"),
        (["Ab", "--seed", "-1"], "--seed -1: expected integers from 0"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: list[str], said: str
) -> None:
    unloaded(monkeypatch)
    code, out, err = run(capsys, "tiny", *given)
    assert (code, out) == (2, "")
    assert err.startswith("jaxllama: generate: ") and said in err and len(err.splitlines()) == 1


def test_unless_told_as_many_tokens_are_written_as_the_context_leaves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def record(*_: Any, **options: Any) -> Any:
        asked.append(options["max_new_tokens"])
        raise KeyboardInterrupt

    monkeypatch.setattr(text, "generate_text", record)
    for context in (8, 131_072):
        monkeypatch.setattr(
            "jaxllama.checkpoint.open_checkpoint",
            lambda *_, **__: tiny(max_position_embeddings=context),  # noqa: B023
        )
        assert run(capsys, "tiny", "Ab")[0] == 130
    assert asked == [6, 256]


def test_a_stdout_that_is_not_unicode_gets_question_marks(
    monkeypatch: pytest.MonkeyPatch, expected: dict[str, Any]
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with pytest.raises(SystemExit, match="0"):
        main(["generate", "tiny", "Ab", *LENGTH, "--quiet"])
    sys.stdout.flush()
    assert not expected["text"].isascii()
    shown = expected["text"].encode("ascii", "replace")
    assert written.getvalue() == shown + b"\n"


def test_a_prompt_on_stdin_that_is_not_text_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", raw)
    code, _, err = run(capsys, "tiny", *LENGTH)
    assert code == 2 and "the prompt on stdin is not text in UTF-8" in err


def test_ctrl_c_ends_the_text_with_a_word() -> None:
    # A shell may have told its background jobs to ignore the signal.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from jaxllama.__main__ import script; script()"
    )
    words = ["generate", "tiny", "Ab", "--max-tokens", "20000", "--ignore-eos"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as writing:
        assert writing.stdout is not None
        first = writing.stdout.read(1)
        writing.send_signal(signal.SIGINT)
        out, err = writing.communicate(timeout=60)
    assert writing.returncode == 130 and err.decode() == "interrupted; the text ends here\n"
    assert (first + out).endswith(b"\n") and len(out) < 20000


def test_weights_and_cache_in_fewer_bits(capsys: pytest.CaptureFixture[str]) -> None:
    model = Llama.from_pretrained(tiny(), dtype=jnp.float32, quant="int8")
    expected = generate_text(
        model, tiny().tokenizer(), "Ab", max_new_tokens=9, cache_dtype="int8"
    ).texts[0]
    options = ["tiny", "Ab", *LENGTH, "--quiet", "--quant", "int8", "--cache-dtype", "int8"]
    assert run(capsys, *options) == (0, expected + "\n", "")
    assert run(capsys, *options, "--cache-tokens", "32") == (0, expected + "\n", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--quant", "int3"], "--quant int3: expected one of int8, int4, int4:GROUP"),
        (["--quant", "int4"], "--quant int4: groups of 32 inputs"),
        (["--cache-dtype", "int4"], "--cache-dtype int4: expected one of f64"),
    ],
)
def test_bits_that_there_are_none_of_are_refused(
    capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    code, out, err = run(capsys, "tiny", "Ab", *LENGTH, *options)
    assert (code, out) == (2, "") and err.startswith(f"jaxllama: {said}")
    assert err.count("\n") == 1
