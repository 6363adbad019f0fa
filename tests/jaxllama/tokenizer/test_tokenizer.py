from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllama.checkpoint import tiny
from jaxllama.errors import CheckpointError, InputError
from jaxllama.tokenizer import Tokenizer, byte_tokenizer_json

TEXTS = [
    "",
    "Hello, world! 12345 I'LL we've",
    "  leading, trailing  \n\n\t tabs\r\n",
    "naïve 日本語 🙂 \u0301 zero\u200bwidth",
    "<|begin_of_text|>not a token<|eot_id|>",
    "x" * 30_000 + " " * 60_000 + "y" * 26_000,
]


@pytest.fixture(scope="module")
def meta_directory(tmp_path_factory) -> Path:
    import llama_models.llama3

    source = Path(llama_models.llama3.__file__).parent / "tokenizer.model"
    directory = tmp_path_factory.mktemp("meta")
    shutil.copy(source, directory)
    return directory


@pytest.fixture(scope="module")
def meta(meta_directory) -> Tokenizer:
    return Tokenizer.from_directory(meta_directory)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("specials", [False, True])
def test_meta_equals_metas_own(meta, meta_directory, text, specials):
    from llama_models.llama3.tokenizer import Tokenizer as Theirs

    theirs = Theirs.get_instance()
    allowed = "all" if specials else set()
    expected = theirs.encode(text, bos=True, eos=False, allowed_special=allowed)
    ids = meta.encode(text, bos=True, specials=specials)
    assert ids == expected
    assert meta.decode(ids[1:]) == text


def test_meta_specials_equal_metas_own(meta):
    from llama_models.llama3.tokenizer import Tokenizer as Theirs

    theirs = Theirs.get_instance()
    assert meta.special_tokens == theirs.special_tokens
    assert (meta.bos_id, set(meta.eos_ids), meta.pad_id) == (
        theirs.bos_id,
        set(theirs.stop_tokens),
        theirs.pad_id,
    )
    assert meta.vocab_size == theirs.n_words == 128256


def test_meta_chat_equals_metas_own(meta):
    from llama_models.datatypes import RawMessage
    from llama_models.llama3.chat_format import ChatFormat
    from llama_models.llama3.tokenizer import Tokenizer as Theirs

    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " What is 1 & 1? "},
    ]
    theirs = ChatFormat(Theirs.get_instance()).encode_dialog_prompt(
        [RawMessage(**message) for message in messages]
    )
    assert meta.encode_chat(messages) == theirs.tokens


@given(st.text())
def test_byte_tokenizer_is_utf8(text):
    tokenizer = Tokenizer.from_files(
        {"tokenizer.json": byte_tokenizer_json(["<s>"])}, source="test"
    )
    ids = tokenizer.encode(text, specials=False)
    assert ids == list(text.encode("utf-8"))
    assert tokenizer.decode(ids) == text


def test_tiny_speaks_bytes():
    tokenizer = tiny().tokenizer()
    assert tokenizer.vocab_size == tiny().config.vocab_size
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (256, (257,), 258)
    assert tokenizer.encode("é<|pad|>", bos=True) == [256, 0xC3, 0xA9, 258]
    assert tokenizer.decode([256, 104, 105, 257], skip_special=True) == "hi"
    assert tokenizer.encode("<|pad|>", specials=False) == list(b"<|pad|>")


def test_directory_files_decide(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(byte_tokenizer_json(["<s>", "</s>", "<turn>"]))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "old"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_directory(tmp_path).eos_ids == (257,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [257, 258]}')
    (tmp_path / "chat_template.jinja").write_text("{{ messages | tojson }}")
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (256, (257, 258))
    assert tokenizer.render_chat([{"role": "é"}]) == '[{"role": "é"}]'


def test_decode_refuses_what_is_no_token():
    with pytest.raises(InputError, match="token id 264, expected 0 to 263"):
        tiny().tokenizer().decode([264])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "tokenizer.json cannot be read"),
        ("tokenizer.model", b"\x0a\x0e\x0a\x05<unk>\x15", "not supported"),
        ("tokenizer.model", b"YQ== 0\n", "does not rank"),
        ("other", b"", "holds neither"),
    ],
)
def test_unreadable_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_directory(tmp_path)
