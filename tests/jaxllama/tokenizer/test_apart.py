"""Tokenizers of strangers run apart: what one takes is bounded, and the library prints nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import token_files

from jaxllama.errors import CheckpointError, InputError, LimitError
from jaxllama.sandbox.process import SandboxProcess, answered_in_here
from jaxllama.tokenizer import Tokenizer, apart

LONG = "a" * 40_000 + "!"


def split(expression: str) -> dict[str, Any]:
    """Return a pre-tokenizer that cuts by an expression."""
    cut = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated"}
    steps = [cut | {"invert": False}, {"type": "ByteLevel", "add_prefix_space": False}]
    steps[1] |= {"trim_offsets": True, "use_regex": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def after(many: int) -> dict[str, Any]:
    """Return a post-processor that puts many tokens after a text."""
    text, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "z", "type_id": 0}}
    known = {"z": {"id": "z", "ids": [5] * many, "tokens": ["q"] * many}}
    kind = {"type": "TemplateProcessing", "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}]}
    return {"post_processor": kind | {"single": [text, *[end] * 4000], "special_tokens": known}}


WORDS = {"a": 0, "!": 1, "b" * 10: 2}
WORD_PIECE = {
    "type": "WordPiece",
    "unk_token": "a",
    "continuing_subword_prefix": "",
    "vocab": WORDS,
}
RUNS = [["a" * length, -1.0] for length in range(1, 3000)]
SLOW: Mapping[str, dict[str, Any]] = {
    "cuts": split("a*[!b][!c]"),
    "normalizer": {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "a*[!b][!c]"}, "content": ""}
    },
    "words": {"model": WORD_PIECE | {"max_input_chars_per_word": 10**9}},
    "lattice": {"model": {"type": "Unigram", "unk_id": 0, "vocab": RUNS}},
}
PANICS: Mapping[str, dict[str, Any]] = {
    "unknown token": {"post_processor": after(1)["post_processor"] | {"special_tokens": {}}},
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
}


def read(**changes: Any) -> Tokenizer:
    files = {"tokenizer.json": token_files.tokenizer_json(**changes)}
    files["tokenizer_config.json"] = token_files.tokenizer_config()
    return Tokenizer.from_files({n: json.dumps(c).encode() for n, c in files.items()}, source="it")


@pytest.fixture(autouse=True)
def tight(monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxProcess]:
    made = SandboxProcess(1, 300 << 20, "jaxllama.tokenizer.answers")
    monkeypatch.setattr(apart, "_process", made)
    yield made
    made.end()


@pytest.mark.parametrize("kind", SLOW)
def test_a_long_text_ends_in_time(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer, sound = read(**SLOW[kind]), read()
    began = time.process_time()
    with pytest.raises(LimitError, match="takes more than 1 seconds to encode 40001 characters"):
        tokenizer.encode(LONG)
    assert time.process_time() - began < 1
    assert tokenizer.encode("") == [] or tokenizer.encode("") == [256]  # opened again
    assert sound.decode(sound.encode(LONG)) == "<s>" + LONG  # as is the other
    assert capfd.readouterr().err == ""


def test_memory_is_bounded() -> None:
    with pytest.raises(LimitError, match=r"it: its tokenizer takes more than .* to be read"):
        read(**after(50_000))


@pytest.mark.parametrize("kind", PANICS)
def test_a_library_s_panic_is_one_error(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=r"^it: tokenizer.json cannot be read: "):
        read(**PANICS[kind])
    assert capfd.readouterr().err == ""
    # In the caller's own process it would be heard.
    with answered_in_here(), pytest.raises(CheckpointError, match="cannot be read"):
        read(**PANICS[kind])
    assert "panicked" in capfd.readouterr().err


def test_nothing_else_is_other_than_in_one_s_own_process() -> None:
    chat = [{"role": "user", "content": "<|turn|> é"}]
    model = {"tokenizer.model": token_files.meta_tokenizer_model()}

    def all_of(one: Tokenizer) -> list[Any]:
        facts = {k: v for k, v in vars(one).items() if not k.startswith("_")}
        ids = one.encode("the <s> 東京\0 12", specials=False)
        return [facts, ids, one.decode(ids), one.encode("<s>"), one.encode_chat(chat)]

    apart_now = [all_of(read()), all_of(Tokenizer.from_files(model, source="it"))]
    with answered_in_here():
        assert [all_of(read()), all_of(Tokenizer.from_files(model, source="it"))] == apart_now


def test_one_that_was_put_away_is_opened_again(tight: SandboxProcess) -> None:
    several = [read() for _ in range(4)]
    assert len({tuple(one.encode("the")) for one in several * 2}) == 1
    tight.end()
    assert several[0].encode("the") == several[1].encode("the")
    with pytest.raises(InputError, match="a lone surrogate"):
        several[0].encode("\ud800")


def test_a_long_text_has_more_means_than_a_short_one() -> None:
    """One second is for a short text: an honest one of a megabyte may take longer."""
    tokenizer = read()
    text = "The quick brown fox. " * 50_000
    assert len(tokenizer.encode(text)) == len(text) + 1


def test_a_fault_of_one_s_own_is_no_fault_of_the_files() -> None:
    with pytest.raises(RuntimeError, match="AttributeError"):
        apart._ask("nonsense", _opened(), {}, 0, "it")


def _opened() -> str:
    tokenizer = read()
    return str(vars(tokenizer._backend)["_name"])
