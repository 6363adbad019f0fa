"""Files of tokenizers that their libraries fail on, panics among it: one error of the project's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import token_files

from jaxllama.errors import CheckpointError, InputError
from jaxllama.tokenizer import Tokenizer, write_model_file
from jaxllama.tokenizer.backend import library_errors

# By what the library does with it: raises on reading, or panics then, on encoding or decoding.
PANICS: dict[str, dict[str, Any]] = {
    "merges": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a"]]}},
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "strip": {"decoder": {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}},
    "unknown": {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}},
    "retries": {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "(a+)+c"},
            "behavior": "Isolated",
            "invert": False,
        }
    },
    "template": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "zz", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
}


@pytest.mark.parametrize("kind", PANICS)
def test_what_the_library_does_is_one_error(kind: str, tmp_path: Path) -> None:
    content = token_files.tokenizer_json(**PANICS[kind])
    place = token_files.write_tokenizer(tmp_path, tokenizer_json=content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        _read_and_use(place)


def _read_and_use(place: Path) -> None:
    tokenizer = Tokenizer.from_directory(place)
    tokenizer.decode(tokenizer.encode("a" * 60 + "b"))


class PanicException(BaseException):
    """As the libraries' bindings have it."""


def test_a_panic_is_caught_and_an_interruption_is_not() -> None:
    with pytest.raises(CheckpointError, match="here: gone"), library_errors("here"):
        raise PanicException("gone")
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), library_errors("here"):
            raise kind
    with pytest.raises(InputError, match=r"^ours$"), library_errors("here"):
        raise InputError("ours")


STRANGE = [5, True, [], {}, [5], [[]], {"a": 5}, [{"name": 5, "template": "x"}], "\ud800", 0.5]


@pytest.mark.parametrize("value", STRANGE, ids=repr)
@pytest.mark.parametrize("field", ["chat_template", "eos_token", "added_tokens_decoder"])
def test_odd_types_of_settings(field: str, value: Any, tmp_path: Path) -> None:
    settings = json.dumps({**token_files.tokenizer_config(), field: value})
    place = token_files.write_tokenizer(tmp_path, tokenizer_config_json=settings)
    if value in ([], {}) and field == "chat_template":
        assert not Tokenizer.from_directory(place).has_chat
    elif value == {} and field == "added_tokens_decoder":
        assert Tokenizer.from_directory(place).encode("a") == [256, 97]
    else:
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
            Tokenizer.from_directory(place)


@pytest.mark.parametrize("value", ["x", True, {}, [1.5], ["1"], [[1]], float("nan")], ids=repr)
def test_odd_types_of_ids(value: Any, tmp_path: Path) -> None:
    place = token_files.write_tokenizer(
        tmp_path, generation_config_json=json.dumps({"eos_token_id": value})
    )
    with pytest.raises(CheckpointError, match=r"eos_token_id is .* expected an id"):
        Tokenizer.from_directory(place)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda lines: lines[1:], "does not rank its tokens"),
        (lambda lines: [b"eHh4 0", *lines[1:]], "no token of byte 0"),
        (lambda lines: [*lines[:-1], b"eHh4 " + b"9" * 5000], "no token with its rank"),
        (lambda lines: lines * 8000, "at most 2000000 are accepted"),
    ],
    ids=["gap", "byte", "digits", "lines"],
)
def test_spoilt_model_files(spoil: Any, said: str) -> None:
    """A byte without a token is a panic of tiktoken's at the first text that has it."""
    lines = token_files.meta_tokenizer_model().splitlines()
    content = b"\n".join(spoil(lines))
    with pytest.raises(CheckpointError, match=said):
        Tokenizer.from_files({"tokenizer.model": content}, source="here")


@pytest.mark.parametrize("field", ["vocab", "merges"])
@pytest.mark.parametrize("value", [5, [5], {"a": "b"}, [["a"]], None, [["\u2603", "a"]]], ids=repr)
def test_no_tokenizer_model_of_a_strange_one(field: str, value: Any) -> None:
    content = token_files.tokenizer_json()
    content["model"][field] = value
    with pytest.raises(CheckpointError):
        write_model_file(json.dumps(content).encode(), 512)
