"""Text as it comes: whole characters, stop strings wherever they fall, nothing lost."""

from __future__ import annotations

import itertools
from typing import ClassVar

import jax.numpy as jnp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxllama.checkpoint import tiny
from jaxllama.errors import InputError
from jaxllama.model import Llama
from jaxllama.sampling import Sampling
from jaxllama.text import TextStream, generate_text
from jaxllama.tokenizer import Tokenizer

TOKENIZER = tiny().tokenizer()  # ids are bytes, 256 and above are special tokens
TEXTS = st.text("ab ,é漢🙂\u200d\n", max_size=24)


@pytest.fixture(scope="module")
def model() -> Llama:
    return Llama.from_pretrained(tiny(), dtype=jnp.float32)


def pieces(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(TOKENIZER, stop)
    return [*(stream.feed(i) for i in ids), stream.finish()], stream


@given(st.lists(st.one_of(st.integers(0, 263), st.sampled_from("é漢🙂".encode())), max_size=40))
@example(list("a🙂".encode()[:-1]))
@example([0xE6, 0xBC, 65, 0xFF, 0xE6])
@example(list("\ufffd!".encode()))
def test_pieces_join_to_the_whole_text(ids: list[int]) -> None:
    shown, stream = pieces(ids)
    assert "".join(shown) == stream.text == TOKENIZER.decode(ids, skip_special=True)


@given(TEXTS)
def test_no_piece_holds_half_a_character(text: str) -> None:
    shown, _ = pieces(list(text.encode()))
    assert "".join(shown) == text
    assert all("\ufffd" not in piece for piece in shown)
    # Each character is shown as soon as its last byte is there.
    ends = [sum(len(c.encode()) for c in text[: i + 1]) - 1 for i in range(len(text))]
    assert [i for i, piece in enumerate(shown) if piece] == ends


def test_decoding_each_token_alone_would_show_halves() -> None:
    ids = list("🙂".encode())
    assert "".join(TOKENIZER.decode([i]) for i in ids) != "🙂"
    assert "".join(pieces(ids)[0]) == "🙂"


@given(TEXTS, st.lists(st.text("ab é漢", min_size=1, max_size=4), min_size=1, max_size=3))
@example("xaab", ["aab"])
@example("aaab", ["aab", "ab"])
@example("漢a", ["a"])
def test_stop_strings_cut_at_the_first_token_that_completes_one(
    text: str, stops: list[str]
) -> None:
    ids = list(text.encode())
    shown, stream = pieces(ids, tuple(stops))
    # By brute force: the shortest run of tokens whose text holds a stop string.
    for count in range(len(ids) + 1):
        read = bytes(ids[:count]).decode(errors="ignore")
        found = [read.index(s) for s in stops if s in read]
        if found:
            assert stream.stopped
            assert "".join(shown) == stream.text == read[: min(found)]
            assert not pieces(ids[: count - 1], tuple(stops))[1].stopped
            return
    assert not stream.stopped
    assert "".join(shown) == text


class _Words:
    """A tokenizer in the manner of SentencePiece: the first word of a text loses its space."""

    special_tokens: ClassVar = {"<s>": 0}
    words = ("<s>", "▁one", "▁two", "s", "▁stop")

    def decode(self, ids: list[int]) -> str:
        return "".join(self.words[i] for i in ids).replace("▁", " ").removeprefix(" ")


@pytest.mark.ill_typed
def test_text_that_depends_on_its_left_neighbours() -> None:
    stream = TextStream(_Words(), ["two s"])  # type: ignore[arg-type]
    assert [stream.feed(i) for i in (0, 1, 2)] == ["", "one", " "]
    assert [stream.feed(i) for i in (3, 2)] == ["twos", " "]
    assert stream.feed(4) == ""
    assert stream.stopped and stream.text == "one twos "


def test_generated_text_is_streamed_and_returned(model: Llama) -> None:
    shown: dict[int, str] = {0: "", 1: ""}

    def show(row: int, text: str) -> None:
        shown[row] += text

    how = Sampling(temperature=1.0)
    found = generate_text(
        model, TOKENIZER, ["Ab", "c"], max_new_tokens=14, sampling=how, seed=3, on_text=show
    )
    assert found.texts == (shown[0], shown[1])
    for row, text in zip(found.generation.rows(), found.texts, strict=True):
        assert text == TOKENIZER.decode(row, skip_special=True)
    # Without looking, and from token ids, it is the same.
    again = generate_text(
        model, TOKENIZER, [[65, 98], [99]], max_new_tokens=14, sampling=how, seed=3
    )
    assert again.texts == found.texts


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_string_ends_its_row(model: Llama, streamed: bool) -> None:
    how, prompts = Sampling(temperature=1.0), ["Ab", "c"]
    plain = generate_text(model, TOKENIZER, prompts, max_new_tokens=14, sampling=how, seed=3)
    pairs = (a + b for a, b in itertools.pairwise(plain.texts[1]))
    stop = next(p for p in pairs if p.isascii() and p not in plain.texts[0])
    found = generate_text(
        model,
        TOKENIZER,
        prompts,
        max_new_tokens=14,
        sampling=how,
        seed=3,
        stop=stop,
        on_text=(lambda row, text: None) if streamed else None,
    )
    assert found.texts == (plain.texts[0], plain.texts[1][: plain.texts[1].index(stop)])
    assert found.generation.finish_reasons == ("length", "stop")
    text = TOKENIZER.decode(found.generation.rows()[1], skip_special=True)
    assert text.endswith(stop) and stop not in text[:-1]


def test_eos_of_the_tokenizer_counts_too(model: Llama) -> None:
    plain = generate_text(model, TOKENIZER, "Ab", max_new_tokens=9)
    end = plain.generation.rows()[0][3]
    tokenizer = tiny().tokenizer()
    tokenizer.eos_ids = (end,)
    found = generate_text(model, tokenizer, "Ab", max_new_tokens=9)
    assert found.generation.finish_reasons == ("eos",)
    assert found.generation.rows()[0][-1] == end
    assert generate_text(model, tokenizer, "Ab", max_new_tokens=9, eos_ids=()).texts == plain.texts


def test_empty_stop_strings_and_prompts_are_refused(model: Llama) -> None:
    with pytest.raises(InputError, match="expected a text of at least one character"):
        generate_text(model, TOKENIZER, "Ab", max_new_tokens=4, stop=["x", ""])
    without_bos = tiny().tokenizer()
    without_bos.adds_bos = False
    assert isinstance(without_bos, Tokenizer)
    with pytest.raises(InputError, match="prompt 0 is empty"):
        generate_text(model, without_bos, "", max_new_tokens=4)


def test_special_tokens_of_a_prompt_may_be_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stranger wrote is encoded as text where that is asked for."""
    asked: list[list[int]] = []

    def stop(_: object, rows: list[list[int]], **__: object) -> None:
        asked.extend(rows)
        raise InterruptedError

    monkeypatch.setattr("jaxllama.text.generate", stop)
    model, tokenizer = Llama.from_pretrained(tiny()), tiny().tokenizer()
    for specials in (True, False):
        with pytest.raises(InterruptedError):
            generate_text(model, tokenizer, "a<|pad|>", max_new_tokens=1, specials=specials)
    assert asked == [[97, 258], [97, *b"<|pad|>"]]


def test_what_was_written_is_said_in_a_few_lines(model: Llama) -> None:
    found = generate_text(model, TOKENIZER, ["<b>"] * 20, max_new_tokens=3)
    for value in (found, found.generation):
        lines = str(value).splitlines()
        assert len(lines) < 12 and lines[0].startswith("rows: 20, ")
        assert lines[-1] == "and: 12 more"
        assert "<b>" not in value._repr_html_() and "<table>" in value._repr_html_()
    assert repr(found.texts[0]) in str(found)
    assert " ".join(map(str, found.generation.rows()[0])) in str(found.generation)
