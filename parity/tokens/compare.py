"""`--mode tokens`: the checkpoint's tokenizer held to another implementation's, exactly.

Rows count as float64: what has no dtype is of meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from jaxllama.errors import CheckpointError, InputError, LimitError
from parity.exact import exact_row, reference_witness
from parity.lockstep.comparator import PassResult
from parity.result import TapResult
from parity.subjects.jaxllama.stream import streamed_text
from parity.tokens.others import META_FILE, OtherTokenizer, kind_of, other_tokenizer
from parity.tokens.texts import LONG_RUN, conversations, corpus

if TYPE_CHECKING:
    from jaxllama.checkpoint import Checkpoint

MODE, LANE = "tokens", "f64"
ROLES, IDS, PLAIN, TEXT, STREAM, CHAT_TEXT, CHAT_IDS = (
    f"tokens.{name}"
    for name in ("roles", "ids", "plain_ids", "text", "stream", "chat_text", "chat_ids")
)
NAMES = (ROLES, IDS, PLAIN, TEXT, STREAM)
CHAT_NAMES = (CHAT_TEXT, CHAT_IDS)
# Tokens of a text that are shown one by one, and what ends it.
STREAMED, STOPS = 120, ("our fathers", "\n\n", "é")


def find_other(checkpoint: Checkpoint, *, alone: bool) -> OtherTokenizer | None:
    """Return another implementation of a checkpoint's tokenizer; None where it has none.

    Args:
        checkpoint: whose.
        alone: whether nothing else was asked for, so that there must be one.

    Raises:
        InputError: there is none, and it was asked for alone; or the package that reads it is not
            installed, or does not take its files.
        LimitError: its rules make texts so much longer that no implementation may be tried.
    """
    kind = kind_of([*checkpoint.companions])
    if kind is not None and checkpoint.tokenizer_loader is not None:
        _refuse_beyond_limits(checkpoint)
        return other_tokenizer(checkpoint.companions, checkpoint.hf_config)
    if alone:
        raise InputError(
            f"{checkpoint.label}: has no tokenizer, so mode tokens has nothing to compare; give "
            "a checkpoint with a tokenizer.json or tokenizer.model, or another mode"
        )
    return None


def _refuse_beyond_limits(checkpoint: Checkpoint) -> None:
    """Read the tokenizer where there are limits, before another implementation has none."""
    try:
        checkpoint.tokenizer()
    except LimitError:
        raise
    except (InputError, CheckpointError):
        return  # which is said by the comparison


def compare_tokens(checkpoint: Checkpoint, other: OtherTokenizer) -> PassResult:
    """Compare a checkpoint's tokenizer with another implementation's.

    Returns:
        The rows, and the other implementation as their witness.

    Raises:
        LimitError: the chat template takes more than it may.
    """
    subject = checkpoint.tokenizer()
    texts = corpus(other.special_tokens)
    if kind_of([*checkpoint.companions]) == META_FILE:
        texts.append(LONG_RUN)
    ids = [other.encode(text) for text in texts]

    def every(what: Callable[[str], Any], right: Callable[[str], Any]) -> list[str]:
        return [
            f"{text[:40]!r}: {_apart(found, expected)}"
            for text in texts
            if (found := _said(what, text)) != (expected := right(text))
        ]

    found = [
        _row(ROLES, "roles", _roles(subject, other)),
        _row(IDS, "corpus", every(subject.encode, other.encode)),
        _row(
            PLAIN,
            "corpus",
            every(lambda t: subject.encode(t, bos=False, specials=False), other.encode_plain),
        ),
        _row(TEXT, "corpus", _read_back(subject, other, ids)),
        _row(STREAM, "corpus", _streams(subject, other, ids)),
    ]
    if other.has_chat or subject.has_chat:
        found += _chats(subject, other)
    return PassResult(found, [reference_witness(other.name, LANE, MODE, found)])


def names_for(rows: Sequence[TapResult]) -> tuple[str, ...]:
    """Return what a run that compared tokens is about: no chats where there is no template."""
    shown = {row.tap for row in rows if row.mode == MODE}
    chats = CHAT_NAMES if shown & {*CHAT_NAMES} else ()
    return (*NAMES, *chats) if shown else ()


def notes(rows: Sequence[TapResult], checkpoint: Checkpoint) -> list[str]:
    """Return what must be said of what was not compared."""
    names = names_for(rows)
    if not names:
        return [f"mode {MODE}: the checkpoint has no tokenizer, so none was compared"]
    found = []
    if CHAT_TEXT not in names:
        found.append(f"mode {MODE}: the checkpoint has no chat template, so none was rendered")
    if checkpoint.format == "gguf":
        found.append(f"mode {MODE}: both read the files that jaxllama made of the GGUF's metadata")
    return found


def _read_back(subject: Any, other: OtherTokenizer, ids: Sequence[Sequence[int]]) -> list[str]:
    problems = []
    for row, skip in product(ids, (False, True)):
        expected = other.decode(row, skip_special=skip)
        found = _said(partial(subject.decode, skip_special=skip), row)
        if found != expected:
            left_out = ", special tokens left out" if skip else ""
            problems.append(f"ids of {expected[:40]!r}{left_out}: {_apart(found, expected)}")
    return problems


def _streams(subject: Any, other: OtherTokenizer, ids: Sequence[Sequence[int]]) -> list[str]:
    """Hold what is shown of tokens one by one to the text of all, cut where a stop begins."""
    problems = []
    for row, stops in product([one[:STREAMED] for one in ids], ((), STOPS)):
        whole = other.decode(row, skip_special=True)
        expected = whole[: min((whole.index(s) for s in stops if s in whole), default=len(whole))]
        found = _said(partial(streamed_text, subject, stop=stops), row)
        if found != expected:
            problems.append(f"{whole[:40]!r} with stops {stops}: {_apart(found, expected)}")
    return problems


def _said(what: Callable[[Any], Any], given: Any) -> Any:
    """Return what a subject says, or how it fails: that is a difference like any other."""
    try:
        return what(given)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _apart(found: Any, expected: Any) -> str:
    """Say where two sequences part."""
    if type(found) is not type(expected):
        return f"{found!r:.60}, expected {expected!r:.60}"
    pairs = enumerate(zip(found, expected, strict=False))
    shorter = min(len(found), len(expected))
    at = next((i for i, (a, b) in pairs if a != b), shorter)
    ours, theirs = found[at : at + 6], expected[at : at + 6]
    return f"from {at} on {ours!r}, expected {theirs!r} ({len(found)} and {len(expected)} in all)"


def _roles(subject: Any, other: OtherTokenizer) -> list[str]:
    pairs = {
        "bos": (subject.bos_id, other.bos_id),
        "eos": (_said(set, subject.eos_ids), other.eos_ids),
        "pad": (subject.pad_id, other.pad_id),
        "vocabulary": (subject.vocab_size, other.vocab_size),
    }
    problems = [f"{name} {a}, expected {b}" for name, (a, b) in pairs.items() if a != b]
    ours, theirs = subject.special_tokens, other.special_tokens
    problems += [
        f"special token {text!r}: {ours.get(text)}, expected {theirs.get(text)}"
        for text in sorted({*ours, *theirs})
        if ours.get(text) != theirs.get(text)
    ]
    return problems


def _chats(subject: Any, other: OtherTokenizer) -> list[TapResult]:
    """Render and encode conversations; what one refuses, the other has to refuse, too."""
    texts, ids = [], []
    for messages in conversations(other.special_tokens):
        for prompted in (True, False):
            roles = ", ".join(one["role"] for one in messages)
            where = f"{roles}{', then the assistant' if prompted else ''}"
            # First, as what takes too much is ended there.
            rendered = _chat(subject.render_chat, messages, prompted)
            try:
                text = other.chat_text(messages, prompted=prompted)
                expected = other.chat_ids(messages, prompted=prompted)
            except ValueError as error:
                if (found := _chat(subject.encode_chat, messages, prompted)) is not None:
                    ids.append(f"{where}: {found!r:.60}, {other.name} refuses: {error}")
                continue
            if text is not None and rendered != text:
                texts.append(f"{where}: {_apart(rendered, text)}")
            found = _chat(subject.encode_chat, messages, prompted)
            if found != expected:
                ids.append(f"{where}: {_apart(found, expected)}")
            if text is None and rendered is not None and _back(other, expected) != rendered:
                texts.append(f"{where}: {_apart(rendered, _back(other, expected))}")
    return [_row(CHAT_TEXT, "conversations", texts), _row(CHAT_IDS, "conversations", ids)]


def _back(other: OtherTokenizer, ids: Sequence[int]) -> str:
    return other.decode(ids, skip_special=False)


def _chat(what: Callable[..., Any], messages: Any, prompted: bool) -> Any:
    """Return what a subject makes of a conversation, None if it refuses on purpose."""
    try:
        return what(messages, add_generation_prompt=prompted)
    except LimitError:
        raise
    except (InputError, CheckpointError):
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _row(tap: str, scenario: str, problems: Sequence[str]) -> TapResult:
    return exact_row(tap, LANE, scenario, MODE, problems)
