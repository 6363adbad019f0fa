"""What the tokenizer and the stream of text do, side by side."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from jaxllama.checkpoint import Checkpoint, convert, open_checkpoint
from jaxllama.sandbox import answers  # noqa: F401 - whose code is edited before it is called
from jaxllama.sandbox.process import answered_in_here
from jaxllama.text import TextStream
from jaxllama.tokenizer import Tokenizer
from parity.runner.run import run
from parity.selftest.mutants import oracles
from parity.selftest.mutants.forms import Form, Outputs, said_by
from parity.subjects.jaxllama.stream import streamed_text
from parity.texts import prose
from parity.tokens.compare import (
    CHAT_IDS,
    CHAT_TEXT,
    IDS,
    MODE,
    PLAIN,
    ROLES,
    STOPS,
    STREAM,
    STREAMED,
    TEXT,
)
from parity.tokens.others import META_FILE
from parity.tokens.texts import LONG_RUN, conversations, corpus

# Meta's tokenizer.model in small: bytes, and pairs of them.
_PAIRS = (b"th", b"he", b" t", b"in", b"er", b"an", b"on", b" a", b"the", b" the", b"\n\n", b"12")
_META_VOCABULARY = 256 + len(_PAIRS) + 256
_SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|pad|>")
_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] | trim }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Texts, conversations and stop strings that no run has.
_TEXTS = (
    "Then the other in the hand: 12 on 12. \n\n Thé the",
    "<|eot_id|>x<|begin_of_text|> the<|end_of_text|><|pad|><|reserved_1|>",
    "ÿþ\x80 🦙🦙 \ud7ff ﷽",
    "the the the\n the\tthe   the",
    " ".join(str(n * n) for n in range(40)),
)
_LONG = LONG_RUN + "  🦙"
_STOPS = (("the the", "\n"), ("🦙",), ("12", "121", " 1"))
_TALKS: Sequence[Sequence[Mapping[str, Any]]] = (
    ({"role": "user", "content": "<|eot_id|> & <b> the\n"},),
    ({"role": "tool", "content": "12"}, {"role": "assistant", "content": " the "}),
    (),
)


def tokens_forms(folder: Path) -> tuple[Form, ...]:
    """Return the tokenizers that `write_tokenizers` has written."""
    return tuple(
        Form(
            name,
            partial(_in_here, _shown, folder / name),
            partial(_in_here, run, folder / name, modes=MODE),
            usual,
        )
        for name, usual in (("json", True), ("model", True), ("trained", False), ("bare", False))
    )


def _in_here(what: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """Call something with templates run in this process, whose code is edited."""
    with answered_in_here():
        return what(*given, **options)


def write_tokenizers(folder: Path) -> None:
    """Write checkpoints with tokenizers of every kind.

    `json` is of bytes; `model` is Meta's format; `trained` has merges, a template by name and ends
    of the generation's own; `bare` has neither bos nor template.
    """
    small: dict[str, Any] = {"num_hidden_layers": 1}
    plain = oracles.micro(**small)
    convert(plain, folder / "json", to="hf")
    roomy = oracles.micro(vocab_size=_META_VOCABULARY, **small)
    convert(_with(roomy, {"tokenizer.model": _meta_file()}), folder / "model", to="hf")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": {"content": _SPECIALS[0], "__type": "AddedToken"},
        "eos_token": _SPECIALS[1],
        "chat_template": _TEMPLATE,
    }
    ends = {"eos_token_id": [1, 2], "pad_token_id": 3}
    trained = {
        "tokenizer.json": _trained_file(bos=True),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "generation_config.json": json.dumps(ends).encode(),
    }
    convert(_with(roomy, trained), folder / "trained", to="hf")
    bare = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    files = {
        "tokenizer.json": _trained_file(bos=False),
        "tokenizer_config.json": json.dumps(bare).encode(),
    }
    nothing = {"bos_token_id": None, "pad_token_id": None, "eos_token_ids": (2,)}
    roomy = oracles.micro(vocab_size=_META_VOCABULARY, **small, **nothing)
    convert(_with(roomy, files), folder / "bare", to="hf")


def _with(checkpoint: Checkpoint, files: Mapping[str, bytes]) -> Checkpoint:
    return replace(
        checkpoint, companions={name: partial(files.__getitem__, name) for name in files}
    )


def _meta_file() -> bytes:
    tokens = [bytes([i]) for i in range(256)] + list(_PAIRS)
    lines = (base64.b64encode(token) + b" %d" % i for i, token in enumerate(tokens))
    return b"\n".join(lines) + b"\n"


def _trained_file(*, bos: bool) -> bytes:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_META_VOCABULARY - 100,
        show_progress=False,
        special_tokens=list(_SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator([prose()], trainer)
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{_SPECIALS[0]} $A", special_tokens=[(_SPECIALS[0], 0)]
        )
    return made.to_str().encode()


def _shown(path: Path) -> Outputs:
    """Return what a tokenizer does, by row of the report, and on texts that the run has not."""
    opened = open_checkpoint(path)
    tokenizer, long = opened.tokenizer(), META_FILE in opened.companions
    rows = _rows(tokenizer, [LONG_RUN] if long else [])
    return {**dict(rows), **dict(_elsewhere(tokenizer, [_LONG] if long else []))}


def _rows(tokenizer: Tokenizer, long: list[str]) -> Iterator[tuple[str, Any]]:
    texts = corpus(tokenizer.special_tokens) + long
    yield ROLES, _roles(tokenizer)
    ids = [said_by(partial(tokenizer.encode, text)) for text in texts]
    yield IDS, ids
    plain = partial(tokenizer.encode, bos=False, specials=False)
    yield PLAIN, [said_by(partial(plain, text)) for text in texts]
    given = [one if isinstance(one, list) else [] for one in ids]
    yield TEXT, _texts(tokenizer, given)
    cut = [one[:STREAMED] for one in given]
    pairs = product(cut, ((), STOPS))
    yield STREAM, [said_by(partial(streamed_text, tokenizer, *pair)) for pair in pairs]
    yield CHAT_TEXT, _chats(tokenizer.render_chat, conversations(tokenizer.special_tokens))
    yield CHAT_IDS, _chats(tokenizer.encode_chat, conversations(tokenizer.special_tokens))


def _elsewhere(tokenizer: Tokenizer, long: list[str]) -> Iterator[tuple[str, Any]]:
    """Return what a tokenizer does with other texts, and how text is shown, token by token."""
    texts = [*_TEXTS, *long]
    ids = [said_by(partial(tokenizer.encode, text, bos=False)) for text in texts]
    yield "other ids", ids
    for options in ({"bos": True}, {"specials": False}, {}):
        yield f"ids {options}", [said_by(partial(tokenizer.encode, t, **options)) for t in texts]
    given = [one if isinstance(one, list) else [] for one in ids]
    given += [[*range(5, 300, 7)], [200, 201, 202], []]
    yield "other texts", _texts(tokenizer, given)
    pairs = product((one[:200] for one in given), _STOPS)
    yield "pieces", [said_by(partial(_pieces, tokenizer, *pair)) for pair in pairs]
    yield "other chats", _chats(tokenizer.render_chat, _TALKS)
    yield "ids of other chats", _chats(tokenizer.encode_chat, _TALKS)


def _roles(tokenizer: Tokenizer) -> tuple[Any, ...]:
    return (
        tokenizer.bos_id,
        sorted(tokenizer.eos_ids),
        tokenizer.pad_id,
        tokenizer.vocab_size,
        sorted(tokenizer.special_tokens.items()),
    )


def _texts(tokenizer: Tokenizer, ids: Sequence[Sequence[int]]) -> list[Any]:
    pairs = product(ids, (False, True))
    return [said_by(partial(tokenizer.decode, row, skip_special=skip)) for row, skip in pairs]


def _pieces(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str]) -> list[str]:
    stream = TextStream(tokenizer, stops)
    return [*map(stream.feed, ids), stream.finish()]


def _chats(what: Callable[..., Any], talks: Sequence[Any]) -> list[Any]:
    return [
        said_by(partial(what, talk, add_generation_prompt=prompted))
        for talk in talks
        for prompted in (True, False)
    ]
