"""What the files beside tokenizer.json say of its tokens: held to transformers' reading of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st
from token_files import SPECIALS, tokenizer_config, tokenizer_json, write_tokenizer
from transformers import PreTrainedTokenizerFast

from jaxllama.errors import CheckpointError, InputError
from jaxllama.tokenizer import Tokenizer
from jaxllama.tokenizer.special_tokens import ROLES

# Tokens of the file, tokens that are ordinary ones in it, and such that no file has.
TEXTS = [*SPECIALS, "a", "<new>", "<image>"]
CUT = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
FILL = {
    "strategy": {"Fixed": 9},
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 257,
    "pad_type_id": 0,
    "pad_token": "</s>",
}


def flags() -> st.SearchStrategy[dict[str, bool]]:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return st.fixed_dictionaries({name: st.booleans() for name in names})


NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "image_token")


def roles() -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, st.sampled_from(TEXTS)))


@st.composite
def directories(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the files of a tokenizer."""
    plain = draw(st.lists(st.sampled_from(SPECIALS), max_size=3, unique=True))
    content = tokenizer_json(
        plain=plain,
        bos=draw(st.booleans()),
        truncation=draw(st.sampled_from([None, CUT])),
        padding=draw(st.sampled_from([None, FILL])),
    )
    for added in content["added_tokens"]:
        if draw(st.integers(0, 4)) == 0:
            special = added["special"]
            added.update(draw(flags()), special=special)
    # A text is described in one way wherever it is: two ways are a contradiction.
    forms = {text: draw(st.none() | flags()) for text in TEXTS}

    def named(form: dict[str, Any]) -> dict[str, Any]:
        found = draw(roles()).items()
        return {
            name: text if forms[text] is None else {"content": text, **forms[text], **form}
            for name, text in found
        }

    config = {"tokenizer_class": "PreTrainedTokenizerFast", **named({"__type": "AddedToken"})}
    extra = st.lists(st.sampled_from(TEXTS), max_size=2, unique=True)
    if draw(st.booleans()):
        config[draw(st.sampled_from(["extra_special_tokens", "additional_special_tokens"]))] = draw(
            extra | st.just({"video_token": "<image>"}) if draw(st.booleans()) else extra
        )
    if isinstance(config.get("additional_special_tokens"), dict):
        del config["additional_special_tokens"]
    if draw(st.booleans()):
        listed = draw(st.lists(st.integers(0, 5), unique=True, max_size=4))
        config["added_tokens_decoder"] = {
            str(256 + i): {"content": SPECIALS[i], **draw(flags())} for i in listed
        }
    config |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "add_bos_token": st.booleans(),
                "model_max_length": st.just(2),
                "padding_side": st.sampled_from(["left", "right"]),
                "clean_up_tokenization_spaces": st.booleans(),
            },
        )
    )
    files = {"tokenizer_json": content, "tokenizer_config_json": config}
    if draw(st.booleans()):
        files["special_tokens_map_json"] = named({"special": True})
    if draw(st.integers(0, 3)) == 0:
        files["added_tokens_json"] = {
            SPECIALS[i]: 256 + i for i in draw(st.sets(st.integers(0, 5)))
        }
    return files


TEXT = st.lists(st.sampled_from([*TEXTS, "b c", " ", "é", "\n"]), max_size=8).map("".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@given(directories(), st.lists(TEXT, min_size=3, max_size=3))
@settings(max_examples=250, phases=[Phase.generate])
def test_tokens_are_those_of_transformers(
    folder: Path, files: dict[str, Any], texts: list[str]
) -> None:
    shutil.rmtree(folder)
    write_tokenizer(folder, **files)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    ours = Tokenizer.from_directory(folder)
    added = theirs.added_tokens_decoder
    left_out = {i for i in added if not theirs.decode([i], skip_special_tokens=True)}
    assert ours.special_tokens == {added[i].content: i for i in left_out}
    assert ours.vocab_size == 1 + max(theirs.get_vocab().values())
    for name, number in (("bos_token", ours.bos_id), ("pad_token", ours.pad_id)):
        expected = getattr(theirs, name)
        assert number == (None if expected is None else theirs.convert_tokens_to_ids(expected))
    assert ours._chat is None
    for text in texts:
        ids = ours.encode(text, bos=False)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        if ours.adds_bos:
            assert ours.encode(text) == theirs(text)["input_ids"]
        plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text, bos=False, specials=False) == plain
        for skip in (False, True):
            assert ours.decode(ids, skip_special=skip) == theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
    event(f"{len(ours.notes)} notes")


@given(directories())
@settings(max_examples=200, phases=[Phase.generate])
def test_template_variables_are_those_of_transformers(folder: Path, files: dict[str, Any]) -> None:
    shutil.rmtree(folder)
    shown = [*ROLES, "image_token", "video_token"]
    files["chat_template_jinja"] = "".join(f"[{name}={{{{ {name} }}}}]" for name in shown)
    write_tokenizer(folder, **files)
    messages = [{"role": "user", "content": "x"}]
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = theirs.apply_chat_template(messages, tokenize=False)
    assert Tokenizer.from_directory(folder).render_chat(messages) == expected


def test_ids_that_two_files_tell_otherwise_are_refused(tmp_path: Path) -> None:
    listed = {"300": {"content": "<new>", "special": True}}
    config = tokenizer_config(added_tokens_decoder=listed)
    write_tokenizer(tmp_path, tokenizer_config_json=config)
    with pytest.raises(
        CheckpointError, match=r"'<new>' is token 300 .* and 262 in tokenizer\.json"
    ):
        Tokenizer.from_directory(tmp_path)


def test_what_is_left_or_made_is_noted(tmp_path: Path) -> None:
    config = tokenizer_config(
        pad_token="<new>", add_bos_token=False, added_tokens_decoder={"256": {"content": "<s>"}}
    )
    write_tokenizer(
        tmp_path,
        tokenizer_json=tokenizer_json(truncation=CUT, padding=FILL),
        tokenizer_config_json=config,
        special_tokens_map_json={"eos_token": "</s>"},
        chat_template_jinja="{{ messages }}",
    )
    notes = "\n".join(Tokenizer.from_directory(tmp_path).notes)
    for said in (
        "special_tokens_map.json is left, as in transformers 5: it has eos_token '</s>'",
        "cuts texts to 3 tokens",
        "fills texts up with pads",
        "'<new>' is named beside tokenizer.json, which has no such token: it got id 262",
        "chat_template.jinja is taken",
        "add_bos_token false in tokenizer_config.json is left",
    ):
        assert said in notes
    assert Tokenizer.from_directory(write_tokenizer(tmp_path / "plain")).notes == ()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"split_special_tokens": True},
            "split_special_tokens True means special tokens in a text",
        ),
        ({"made_up": 3}, "made_up 3 is not a known field and could change the tokens"),
        ({"bos_token": 3}, "bos_token in tokenizer_config.json is 3, expected a text"),
        ({"extra_special_tokens": 3}, "extra_special_tokens is 3, expected a list"),
        ({"added_tokens_decoder": {"x": "<s>"}}, "no object of tokens by id"),
        ({"chat_template": 3}, "expected a text, texts by name, or a list"),
        ({"chat_control_tokens": "x"}, "expected a list of texts"),
    ],
)
def test_settings_that_are_not_understood(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    write_tokenizer(tmp_path, tokenizer_config_json=tokenizer_config(**changes))
    with pytest.raises(CheckpointError, match=match):
        Tokenizer.from_directory(tmp_path)


def test_the_harmful_come_first(tmp_path: Path) -> None:
    config = tokenizer_config(zeta=1, eta=2, fix_mistral_regex=True)
    write_tokenizer(tmp_path, tokenizer_config_json=config)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_directory(tmp_path)
    _, first, second = str(caught.value).splitlines()
    assert "fix_mistral_regex" in first and "2 fields are not known" in second
    assert "remove those" in second


def test_another_map_of_special_tokens_is_looked_at(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, special_tokens_map_json={"made_up": 1})
    with pytest.raises(
        CheckpointError, match=r"special_tokens_map\.json: made_up 1 is not a known"
    ):
        Tokenizer.from_directory(tmp_path)


def test_damaged_files_beside_it_are_named(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, added_tokens_json=json.dumps({"<s>": "x"}))
    with pytest.raises(CheckpointError, match=r"added_tokens\.json: '<s>' has id 'x'"):
        Tokenizer.from_directory(tmp_path)


JUNK = st.recursive(
    st.sampled_from([None, True, -1, 3, 1.5, "", "<s>", "x", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["content", "special", "name", "template", "x"]), inner)
    ),
    max_leaves=4,
)
KEYS = [*ROLES, "image_token", "extra_special_tokens", "additional_special_tokens", "chat_template"]
KEYS += ["added_tokens_decoder", "chat_control_tokens", "add_bos_token", "tokenizer_class", "<s>"]


@given(
    st.sampled_from(
        ["tokenizer_config", "special_tokens_map", "added_tokens", "generation_config"]
    ),
    st.dictionaries(st.sampled_from([*KEYS, "eos_token_id", "bos_token_id"]), JUNK, max_size=3),
)
@settings(max_examples=300, phases=[Phase.generate])
def test_no_content_of_a_file_is_a_crash(folder: Path, name: str, content: dict[str, Any]) -> None:
    shutil.rmtree(folder)
    write_tokenizer(folder, **{f"{name}_json": json.dumps(content)})
    try:
        tokenizer = Tokenizer.from_directory(folder)
        tokenizer.decode(tokenizer.encode("a<s>"), skip_special=True)
        tokenizer.encode_chat([{"role": "user", "content": "x</s>"}])
    except (CheckpointError, InputError) as error:
        said = str(error)
    else:
        said = ""
    assert len(said.splitlines()) <= 12
    event("refused" if said else "read")
