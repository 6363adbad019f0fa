"""`--mode tokens`: honest tokenizers are equal to another implementation's, faults are named."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from planting import planted

import parity
from jaxllama.checkpoint import Checkpoint, open_checkpoint, tiny
from jaxllama.errors import InputError, LimitError
from jaxllama.sandbox.process import answered_in_here
from jaxllama.sandbox.templates import compile_template
from jaxllama.tokenizer import Tokenizer
from parity.lockstep.comparator import PassResult
from parity.tokens import compare
from parity.tokens.compare import compare_tokens, find_other


@cache
def small() -> Checkpoint:
    return tiny(num_hidden_layers=1)


@cache
def meta() -> Checkpoint:
    """Return a checkpoint with Meta's own tokenizer.model; its weights are nobody's concern."""
    import llama_models.llama3

    found = {"tokenizer.model": Path(llama_models.llama3.__file__).parent / "tokenizer.model"}
    content = found["tokenizer.model"].read_bytes()
    tokenizer = Tokenizer.from_files({"tokenizer.model": content}, source="test")
    return replace(
        small(), companions={"tokenizer.model": lambda: content}, tokenizer_loader=lambda: tokenizer
    )


@cache
def broken_lines() -> Checkpoint:
    """Return a checkpoint whose template is written over several lines."""
    template = b"{% for m in messages %}\n{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}\n"
    return replace(
        small(), companions={**small().companions, "chat_template.jinja": lambda: template}
    )


_made: dict[tuple[tuple[str, int], ...], Any] = {}


@pytest.fixture(autouse=True)
def _others_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep other implementations by the content of their files: Meta's takes a second to read."""
    make = compare.other_tokenizer

    def once(companions: Mapping[str, Callable[[], bytes]], config: Mapping[str, Any]) -> Any:
        key = tuple((name, hash(read())) for name, read in sorted(companions.items()))
        if key not in _made:
            _made[key] = make(companions, config)
        return _made[key]

    monkeypatch.setattr(compare, "other_tokenizer", once)


def compared(checkpoint: Checkpoint) -> PassResult:
    other = find_other(checkpoint, alone=True)
    assert other is not None
    return compare_tokens(checkpoint, other)


def failed(found: PassResult) -> list[str]:
    return [row.tap for row in found.rows if not row.passed]


@pytest.mark.parametrize(
    ("made", "name"), [(small, "transformers"), (meta, "llama-models")], ids=["json", "model"]
)
def test_honest_tokenizers_are_equal(made: Callable[[], Checkpoint], name: str) -> None:
    found = compared(made())
    assert failed(found) == []
    assert len(found.rows) == 7 and [w.witness for w in found.witnesses] == [name]


def test_a_trained_tokenizer_is_equal() -> None:
    assert failed(compared(open_checkpoint("smollm2"))) == []


# Of which module what is edited, and the first row that shows it.
FAULTS = {
    "bos left out": (
        "tokenizer.tokenizer",
        "return [self.bos_id, *ids]",
        "return [*ids]",
        meta,
        "tokens.ids",
    ),
    "special tokens read as text": (
        "tokenizer.json_file",
        "self._tokenizer.encode_special_tokens = not specials",
        "self._tokenizer.encode_special_tokens = True",
        small,
        "tokens.ids",
    ),
    "text read as special tokens": (
        "tokenizer.model_file",
        'allowed: Any = "all" if specials else set()',
        'allowed: Any = "all"',
        meta,
        "tokens.plain_ids",
    ),
    "decoding drops the first": (
        "tokenizer.model_file",
        "return self._encoding.decode(list(ids))",
        "return self._encoding.decode(list(ids)[1:])",
        meta,
        "tokens.text",
    ),
    "special tokens kept in a text": (
        "tokenizer.tokenizer",
        "ids = [i for i in ids if i not in special]",
        "ids = [i for i in ids if i in special or True]",
        small,
        "tokens.text",
    ),
    "a wrong pad": (
        "tokenizer.json_file",
        'pad_id=_role("pad_token"',
        'pad_id=_role("eos_token"',
        small,
        "tokens.roles",
    ),
    "reserved ids one further": (
        "tokenizer.model_file",
        "for i, text in enumerate((*_META_SPECIALS, *reserved))}",
        "for i, text in enumerate((*_META_SPECIALS, *reserved), 1)}",
        meta,
        "tokens.roles",
    ),
    "names of special tokens unread": (
        "tokenizer.special_tokens",
        "return AddedToken(value, special=True",
        "return AddedToken(value + ' ', special=True",
        small,
        "tokens.roles",
    ),
    "a role missing": (
        "tokenizer.template_chat",
        '{**variables, "messages": given})',
        '{**variables, "messages": [{**m, "role": ""} for m in given]})',
        small,
        "tokens.chat_text",
    ),
    "blanks of blocks kept": (
        "sandbox.templates",
        "trim_blocks=True,",
        "trim_blocks=False,",
        broken_lines,
        "tokens.chat_text",
    ),
    "no generation prompt": (
        "tokenizer.meta_chat",
        "    if prompted:",
        "    if prompted is None:",
        meta,
        "tokens.chat_text",
    ),
    "a header within a user's text": (
        "tokenizer.control_tokens",
        "return control.sub(",
        "return (lambda _, text: text)(",
        small,
        "tokens.chat_ids",
    ),
    "half a blank line after a header": (
        "tokenizer.meta_chat",
        'yield "\\n\\n", False\n\n\ndef',
        'yield "\\n", False\n\n\ndef',
        meta,
        "tokens.chat_text",
    ),
}


def reopened(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose tokenizer is read anew."""
    files = {name: read() for name, read in checkpoint.companions.items()}
    load = partial(Tokenizer.from_files, files, source="test", config=checkpoint.config)
    return replace(checkpoint, tokenizer_loader=load)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(name: str) -> None:
    module, before, after, made, expected = FAULTS[name]
    compile_template.cache_clear()
    edited = planted(f"jaxllama.{module}", before, after, compiled=False)
    with edited, answered_in_here():
        assert failed(compared(reopened(made())))[:1] == [expected]


def test_a_wrong_table_is_caught() -> None:
    """Two tokens exchanged: every text with one of them has other ids."""

    class Exchanged(Tokenizer):
        def encode(self, text: str, **options: Any) -> list[int]:
            swap = {101: 116, 116: 101}
            return [swap.get(i, i) for i in super().encode(text, **options)]

    files = {name: read() for name, read in small().companions.items()}
    load = partial(Exchanged.from_files, files, source="test", config=small().config)
    found = compared(replace(small(), tokenizer_loader=load))
    assert failed(found) == ["tokens.ids", "tokens.plain_ids", "tokens.chat_ids"]
    (problem, *_) = found.rows[1].problems
    assert "expected [" in problem


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("if token in self._special or self.stopped", "if self.stopped"),
        ("self.text = self.text[: min(found)], True", ""),
        ("max(0, searched - len(s) + 1)", "searched"),
        ("fresh.rstrip(_REPLACEMENT)", "fresh"),
    ],
    ids=["special tokens shown", "", "stop string across tokens", "half a character shown"],
)
def test_a_fault_of_streaming_is_caught(before: str, after: str) -> None:
    if not after:
        before, after = "self.text[: min(found)], True", "self.text, True"
    with planted("jaxllama.text", before, after, compiled=False):
        assert failed(compared(small())) == ["tokens.stream"]


def test_a_run_of_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("no model is run")

    monkeypatch.setattr("parity.runner.run.generation.compare_generation", never)
    monkeypatch.setattr("parity.runner.run.forward.compare_forward", never)
    result = parity.run(small(), modes="tokens")
    assert result.verdict == "equal" and result.compared == result.expected == 7
    assert result.notes == []


def test_a_template_is_not_asked_for_where_there_is_none() -> None:
    files = dict(small().companions)
    settings = json.loads(files["tokenizer_config.json"]())
    del settings["chat_template"]
    files["tokenizer_config.json"] = lambda: json.dumps(settings).encode()
    checkpoint = reopened(replace(small(), companions=files))
    found = compared(checkpoint)
    assert failed(found) == [] and len(found.rows) == 5
    assert compare.notes(found.rows, checkpoint) == [
        "mode tokens: the checkpoint has no chat template, so none was rendered"
    ]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "chat_template.jinja",
            b"{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
            "gives",
        ),
        (
            "tokenizer.json",
            {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
                ]
                * 20,
            },
            "its normalizer can make a text",
        ),
    ],
)
def test_what_is_beyond_a_limit_is_given_to_nobody(
    name: str, change: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers has no limits: it would fill the memory."""
    files = dict(small().companions)
    if name == "tokenizer.json":
        content = json.loads(files[name]()) | {"normalizer": change}
        change = json.dumps(content).encode()
    files[name] = lambda: change
    from transformers import PreTrainedTokenizerFast

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("transformers runs it")

    monkeypatch.setattr(PreTrainedTokenizerFast, "apply_chat_template", never)
    with pytest.raises(LimitError, match=said):
        compared(reopened(replace(small(), companions=files)))


def test_without_a_tokenizer() -> None:
    bare = tiny(
        num_hidden_layers=1, vocab_size=100, bos_token_id=None, eos_token_ids=(), pad_token_id=None
    )
    with pytest.raises(InputError, match="has no tokenizer, so mode tokens has nothing"):
        parity.run(bare, modes="tokens")
    result = parity.run(bare, modes="free,tokens", dtypes="f64", scenarios="right_padded", length=5)
    assert result.verdict == "equal"
    assert "mode tokens: the checkpoint has no tokenizer, so none was compared" in result.notes


@pytest.mark.parametrize(
    ("made", "package", "extra"),
    [(small, "transformers", "parity"), (meta, "llama_models", "meta")],
)
def test_a_missing_package_is_said(
    made: Callable[[], Checkpoint], package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> object:
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, globals, locals, fromlist, level)

    checkpoint = made()
    _made.clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=rf"{package} is not installed: .*jaxllama\[{extra}\]"):
        parity.run(checkpoint, modes="tokens")


def test_files_that_the_other_does_not_take() -> None:
    files = {"tokenizer.model": lambda: b"no token"}
    checkpoint = replace(meta(), companions=files)
    with pytest.raises(InputError, match=r"llama-models does not take .* tokenizer\.model"):
        compared(checkpoint)


def test_files_that_the_other_does_not_take_are_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a model is run")

    monkeypatch.setattr("parity.runner.run.forward.compare_forward", never)
    checkpoint = replace(small(), companions={"tokenizer.json": lambda: b"{}"})
    with pytest.raises(InputError, match=r"transformers does not take .* tokenizer\.json"):
        parity.run(checkpoint, modes="free,tokens", dtypes="f64")


def test_tokens_beside_a_streamed_model() -> None:
    alone = parity.run(small(), modes="tokens", stream=True)
    assert alone.verdict == "equal" and alone.compared == alone.expected == 7
    options = {"dtypes": "f32", "scenarios": "right_padded", "length": 5}
    both = parity.run(small(), modes="free,tokens", stream=True, **options)
    assert both.verdict == "equal" and {row.mode for row in both.rows} == {"free", "tokens"}
