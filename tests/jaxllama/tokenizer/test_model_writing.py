"""tokenizer.model made of tokenizer.json: held to Meta's own file and Meta's own reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from token_files import tokenizer_json
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from jaxllama.checkpoint import convert, open_checkpoint, tiny
from jaxllama.errors import CheckpointError
from jaxllama.sandbox.process import answered_in_here
from jaxllama.tokenizer import LLAMA3_SPLIT, Tokenizer, byte_tokenizer_json, write_model_file
from jaxllama.tokenizer.bytes import spelled_bytes
from jaxllama.tokenizer.model_file import meta_special_tokens
from parity.texts import prose

PAIRS = (b"th", b"he", b"the", b" t", b" the", b"\n\n", b"12", b"123", "é".encode())


def of_llama3s_kind(pairs: tuple[bytes, ...] = PAIRS) -> dict[str, Any]:
    """Return a tokenizer.json as transformers makes one of a tokenizer.model."""
    ranks = {bytes([i]): i for i in range(256)}
    ranks |= {token: 256 + i for i, token in enumerate(pairs)}
    letters = spelled_bytes()

    def spelled(token: bytes) -> str:
        return "".join(letters[b] for b in token)

    merges = [
        (spelled(token[:at]), spelled(token[at:]))
        for token in pairs
        for at in range(1, len(token))
        if token[:at] in ranks and token[at:] in ranks
    ]
    vocab = {spelled(token): rank for token, rank in ranks.items()}
    made = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    specials = list(meta_special_tokens(len(ranks)))
    specials[5] = "<|reserved_special_token_200|>"  # as releases number them otherwise
    del specials[-54]
    made.add_special_tokens([AddedToken(text, normalized=False) for text in specials])
    content: dict[str, Any] = json.loads(made.to_str())
    return content


ROWS = 256 + len(PAIRS) + 256


def theirs(directory: Path) -> Any:
    from llama_models.llama3.tokenizer import Tokenizer as Metas

    return Metas(directory / "tokenizer.model")


def test_llama_3s_own_file_comes_back_to_the_byte() -> None:
    import llama_models.llama3
    from transformers.convert_slow_tokenizer import TikTokenConverter

    file = Path(llama_models.llama3.__file__).parent / "tokenizer.model"
    specials = list(meta_special_tokens(128000))
    made = TikTokenConverter(str(file), pattern=LLAMA3_SPLIT, extra_special_tokens=specials)
    assert write_model_file(made.converted().to_str().encode(), 128256) == file.read_bytes()


def test_metas_reader_gives_the_same_ids(tmp_path: Path) -> None:
    content = of_llama3s_kind()
    source = tiny(vocab_size=ROWS, num_hidden_layers=1)
    found = {"tokenizer.json": json.dumps(content).encode()}
    checkpoint = replace(
        source,
        companions={"tokenizer.json": lambda: found["tokenizer.json"]},
        tokenizer_loader=lambda: Tokenizer.from_files(found, source="test"),
    )
    done = convert(checkpoint, tmp_path / "meta", to="meta")
    assert not done.notes
    ours, metas = Tokenizer.from_files(found, source="test"), theirs(tmp_path / "meta")
    for text in (prose(), "the 123456 thethe\n\n\n é", "<|eot_id|>", ""):
        ids = ours.encode(text, bos=False, specials=False)
        assert ids == metas.encode(text, bos=False, eos=False)
        assert ids == ours.encode(text, bos=False, specials=False)
    assert ours.encode("<|eot_id|>", bos=False) == [metas.eot_id]
    # What is there already is carried along as it is.
    again = convert(tmp_path / "meta", tmp_path / "again", to="meta").target
    one, two = ((p / "tokenizer.model").read_bytes() for p in (again, tmp_path / "meta"))
    assert one == two


@pytest.mark.parametrize("name", ["tiny", "smollm2-like"])
def test_another_kind_is_said_and_its_own_file_carried(name: str, tmp_path: Path) -> None:
    source = tiny(num_hidden_layers=1)
    if name != "tiny":
        content = tokenizer_json()
        digits = {"type": "Digits", "individual_digits": True}
        content["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [digits, content["pre_tokenizer"]],
        }
        source = replace(
            source, companions={"tokenizer.json": lambda: json.dumps(content).encode()}
        )
    done = convert(source, tmp_path / "meta", to="meta")
    assert len(done.notes) == 1 and "does not cut texts where Llama 3 does" in done.notes[0]
    assert not (tmp_path / "meta" / "tokenizer.model").exists()
    assert (tmp_path / "meta" / "tokenizer.json").exists()
    assert open_checkpoint(tmp_path / "meta").tokenizer_loader is not None


def changed(part: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[part].update(fields)


def reordered(content: dict[str, Any]) -> None:
    merges = content["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


def one_cut_less(content: dict[str, Any]) -> None:
    content["model"]["merges"] = [m for m in content["model"]["merges"] if m != ["t", "he"]]


def renamed(text: str, to: str) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        for token in content["added_tokens"]:
            token["content"] = to if token["content"] == text else token["content"]

    return edit


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (changed("model", type="WordPiece"), "cannot be read"),
        (
            lambda c: c.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
            "WordLevel, not byte-level BPE",
        ),
        (lambda c: c.update(normalizer={"type": "NFC"}), "before they are cut"),
        (reordered, "not in the order of the ids"),
        (one_cut_less, "1 of the 11 pairs .* are no merges"),
        (changed("model", dropout=0.1), "its model has dropout"),
        (changed("model", byte_fallback=True), "byte_fallback"),
        (renamed("<|eot_id|>", "<|im_end|>"), r"'<\|eot_id\|>' is none in it, 274"),
        (renamed("<|python_tag|>", "<|tool|>"), r"'<\|tool\|>' is 275 .* no special token"),
        (lambda c: c["model"]["vocab"].update(zz=999), "not 0, 1, 2"),
        (lambda c: c["model"]["vocab"].update({"\u6771": 265}), "does not spell bytes"),
    ],
)
def test_what_differs_is_refused(spoil: Callable[[dict[str, Any]], Any], said: str) -> None:
    content = of_llama3s_kind()
    write_model_file(json.dumps(content).encode(), ROWS)
    spoil(content)
    with pytest.raises(CheckpointError, match=said):
        write_model_file(json.dumps(content).encode(), ROWS)


def test_the_embedding_has_to_have_room() -> None:
    with pytest.raises(CheckpointError, match=r"makes 521 tokens .* 600 rows"):
        write_model_file(json.dumps(of_llama3s_kind()).encode(), 600)
    with pytest.raises(CheckpointError, match="does not cut"):
        write_model_file(byte_tokenizer_json(["<s>"]), 512)


def test_a_token_that_no_merges_reach_needs_their_being_ignored() -> None:
    """`xyz` has no pair of tokens that make it: tiktoken looks it up whole."""
    content = of_llama3s_kind((*PAIRS, b"xyz"))
    write_model_file(json.dumps(content).encode(), ROWS + 1)
    content["model"]["ignore_merges"] = False
    with pytest.raises(CheckpointError, match="cannot be reached"):
        write_model_file(json.dumps(content).encode(), ROWS + 1)


def test_encoding_is_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the rules of merges not looked at, the texts would tell."""
    content = of_llama3s_kind()
    one_cut_less(content)
    content["model"]["ignore_merges"] = False
    content["model"]["merges"] = [m for m in content["model"]["merges"] if m != ["th", "e"]]
    monkeypatch.setattr("jaxllama.tokenizer.model_writing._check_merges", lambda *_: None)
    with answered_in_here(), pytest.raises(CheckpointError, match="gets other ids by ranks"):
        write_model_file(json.dumps(content).encode(), ROWS)
