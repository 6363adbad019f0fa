"""Text in, text out: detokenising as tokens come, stop strings, and generation around both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numpy.typing import DTypeLike

from jaxllama.cache import KVCache
from jaxllama.command_line.notebook import html_table
from jaxllama.errors import InputError, argument
from jaxllama.generate import Generation, generate
from jaxllama.model import Llama
from jaxllama.sampling import Sampling
from jaxllama.tokenizer import Tokenizer

# What decoding makes of bytes that are not UTF-8, among them a character's first bytes alone.
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, eq=False)
class TextGeneration:
    """What was written for each prompt.

    Attributes:
        texts: without special tokens, and cut before a stop string.
        generation: tokens, log-probabilities, reasons; a stop string's own tokens included.
    """

    texts: tuple[str, ...]
    generation: Generation

    def __str__(self) -> str:
        return "\n".join(map(": ".join, self._summary()))

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return html_table("TextGeneration", self._summary())

    def _summary(self) -> list[tuple[str, str]]:
        return self.generation.summary([repr(text) for text in self.texts])


class TextStream:
    """Turns tokens into text as they come, never showing half a character or half a stop string.

    Joined together, what `feed` and `finish` return is the text of all tokens, cut before the
    first stop string.

    Args:
        tokenizer: turns ids into text.
        stop: strings that end the text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.special_tokens.values())
        self._stop = tuple(stop)
        # A token's text depends on its left neighbours: half characters, a space that only the
        # first word lacks. So each one is decoded with those from `_start`; up to `_end` they
        # are settled, and `_before` is the text up to there.
        self._ids: list[int] = []
        self._start = self._end = 0
        self._before = ""
        self._shown = 0
        self.text = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """Take one more token; return the text that can be shown because of it."""
        if token in self._special or self.stopped:
            return ""
        self._ids.append(token)
        fresh = self._fresh()
        searched = len(self.text)
        self.text = self._before + fresh.rstrip(_REPLACEMENT)
        if fresh and not fresh.endswith(_REPLACEMENT):
            self._before, self._start, self._end = self.text, self._end, len(self._ids)
        self._look_for_stop(searched)
        return self._show(len(self.text) - (0 if self.stopped else self._held_back()))

    def finish(self) -> str:
        """Return what was held back in case more should come."""
        if not self.stopped:
            self.text = self._before + self._fresh()
        return self._show(len(self.text))

    def _fresh(self) -> str:
        settled = self._tokenizer.decode(self._ids[self._start : self._end])
        return self._tokenizer.decode(self._ids[self._start :])[len(settled) :]

    def _look_for_stop(self, searched: int) -> None:
        starts = (self.text.find(s, max(0, searched - len(s) + 1)) for s in self._stop)
        found = [start for start in starts if start >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _held_back(self) -> int:
        """Return how many last characters could be the beginning of a stop string."""
        return max(
            (n for s in self._stop for n in range(1, len(s)) if self.text.endswith(s[:n])),
            default=0,
        )

    def _show(self, end: int) -> str:
        shown, self._shown = self._shown, max(self._shown, end)
        return self.text[shown : self._shown]


def generate_text(
    model: Llama,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = (),
    eos_ids: Sequence[int] | None = None,
    seed: int | Sequence[int] = 0,
    cache: KVCache | None = None,
    cache_dtype: DTypeLike | None = None,
    on_text: Callable[[int, str], None] | None = None,
    specials: bool = True,
) -> TextGeneration:
    """Continue texts, up to an end-of-sequence token, a stop string or `max_new_tokens`.

    Args:
        model: the model.
        tokenizer: the checkpoint's.
        prompts: one text, or several; each may be token ids instead, such as those of
            `Tokenizer.encode_chat`.
        max_new_tokens: most tokens to write per prompt.
        sampling: how a token is chosen.
        stop: strings that end a text, found also where they span tokens; not part of it.
        eos_ids: tokens that end a text; if None, those of the tokenizer and of the checkpoint.
        seed: see `jaxllama.generate.generate`.
        cache: likewise.
        cache_dtype: likewise.
        on_text: called as on_text(prompt's number, new text) after each token. There may be no
            new text, while a character or what may become a stop string is incomplete.
        specials: whether special tokens written in a text become those tokens, as a prompt that is
            written by hand for a model wants it. Switch it off for text from a stranger, or use
            `Tokenizer.encode_chat`.

    Raises:
        InputError: see `jaxllama.generate.generate`; or an empty stop string.
    """
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(s, str) and s for s in stop):
        wrong = next(s for s in stop if not (isinstance(s, str) and s))
        raise InputError(f"{argument('stop')} {wrong!r}: expected a text of at least one character")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    rows = [tokenizer.encode(p, specials=specials) if isinstance(p, str) else p for p in prompts]
    if eos_ids is None:
        eos_ids = sorted({*tokenizer.eos_ids, *model.config.eos_token_ids})
    streams = [TextStream(tokenizer, stop) for _ in rows]
    read = [0] * len(rows)

    def take(written: list[list[int]]) -> dict[int, int]:
        """Show what is new in each row; end those that hold a stop string, right after it."""
        ended = {}
        for row, (tokens, stream) in enumerate(zip(written, streams, strict=True)):
            for count, token in enumerate(tokens[read[row] :], start=read[row] + 1):
                text = stream.feed(token)
                if on_text is not None:
                    on_text(row, text)
                if stream.stopped:
                    ended[row] = count
                    break
            read[row] = len(tokens)
        return ended

    generation = generate(
        model,
        rows,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        eos_ids=eos_ids,
        seed=seed,
        cache=cache,
        cache_dtype=cache_dtype,
        watch=take if stop or on_text else None,
        # For a stop string alone, a few tokens too many cost less than looking after each.
        every=1 if on_text else 8,
    )
    if not (stop or on_text):
        take(generation.rows())
    for row, stream in enumerate(streams):
        text = stream.finish()
        if text and on_text is not None:
            on_text(row, text)
    return TextGeneration(tuple(s.text for s in streams), generation)
