"""What `generate` is asked to do, and what it answered.

Each exchange is a scenario of `--mode generate`: prompts of several lengths, greedy unless its name
says otherwise.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from typing import Any, Literal

from jaxllama.errors import JaxLlamaError
from parity.generation.reference import padded_inputs
from parity.generation.sampler import GREEDY, Setting
from parity.inputs import Inputs
from parity.subjects.jaxllama.generate import GeneratedTokens, Generator

Rows = tuple[tuple[int, ...], ...]

# Tokens of the longest prompt, and new ones. With what is continued they fill 30 of 32 slots, which
# is what `generate` makes for itself: all greedy exchanges are one compiled program.
PROMPT, NEW = 9, 9
# What comes after a prompt: new tokens, of a next turn up to 3, and new ones again.
CONTINUED = 2 * NEW + 3
# The shortest that leaves each of three rows two tokens.
LEAST_PROMPT = 6
# Where the watcher ends row 1, and after how many tokens it looks: more are there than it leaves.
CUT, EVERY = {1: 4}, 3
SEED, SEEDS = 20_260, (11, 4_294_967_295, 7)
COMBINED = Setting(temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2)
WARM = Setting(temperature=1.0)


@dataclass(frozen=True, eq=False)
class Exchange:
    """One call of `generate`.

    Attributes:
        name: of the scenario.
        contexts: all that stands before each row's new tokens.
        setting: how tokens are chosen.
        eos: tokens that end a row.
        seeds: as asked for.
        cuts: rows that the watcher ends, and after how many tokens.
        written: the answer; None if it was refused.
        refused: in what words.
    """

    name: str
    contexts: Rows
    setting: Setting = GREEDY
    eos: tuple[int, ...] = ()
    seeds: int | tuple[int, ...] = 0
    cuts: Mapping[int, int] = field(default_factory=dict)
    written: GeneratedTokens | None = None
    refused: str = ""

    def texts(self) -> Rows:
        """Return each row's new tokens, up to the first that is no id of the vocabulary."""
        if self.written is None:
            return ()
        known = range(self.written.vocabulary)
        rows = zip(self.written.tokens, self.written.lengths, strict=True)
        return tuple(
            tuple(takewhile(known.__contains__, map(int, ids[: int(length)])))
            for ids, length in rows
        )


class Conversation:
    """The exchanges with one model, in their order: later ones go on from earlier ones.

    Args:
        generator: who writes.
        prompts: token ids of three rows of at least two tokens each.
    """

    def __init__(self, generator: Generator, prompts: Rows) -> None:
        self._generator, self._prompts = generator, prompts
        self._capacity = 1 << (max(map(len, prompts)) + CONTINUED - 1).bit_length()

    def hold(self) -> Iterator[Exchange]:
        """Yield the exchanges of `NAMES`."""
        greedy = self._fresh("greedy")
        yield greedy
        texts = greedy.texts()
        known = texts if texts and all(texts) else self._prompts
        ended = self._fresh("eos", eos=_ends(known), cached=True)
        yield ended
        yield self._continued(ended)
        yield self._padded("left")
        yield self._padded("right")
        yield self._fresh("watched", cuts=CUT, cached=True)
        yield self._fresh("sampled", setting=COMBINED, seeds=SEEDS)
        yield self._fresh("seeded", setting=WARM, seeds=SEED)

    def _fresh(
        self,
        name: str,
        *,
        setting: Setting = GREEDY,
        eos: tuple[int, ...] = (),
        seeds: int | tuple[int, ...] = 0,
        cuts: Mapping[int, int] | None = None,
        cached: bool = False,
    ) -> Exchange:
        """Write after the prompts, into a cache of our own if `cached`."""
        asked = Exchange(name, self._prompts, setting, eos, seeds, cuts or {})

        def begin() -> tuple[Rows, Any]:
            if not cached:
                return self._prompts, None
            return self._prompts, self._generator.empty_cache(len(self._prompts), self._capacity)

        return self._write(asked, begin)

    def _continued(self, before: Exchange) -> Exchange:
        """Write after what an exchange left in its cache, its last token and some new ones."""
        texts = before.texts() or tuple((0,) for _ in self._prompts)
        # 3, 2 and 1 of them, from the beginning of the prompts.
        added = [row[: 3 - b] for b, row in enumerate(self._prompts)]
        contexts = tuple(
            (*row, *text, *more)
            for row, text, more in zip(before.contexts, texts, added, strict=True)
        )
        prompts = tuple((*text[-1:], *more) for text, more in zip(texts, added, strict=True))
        cache = None if before.written is None else before.written.cache
        return self._write(Exchange("continued", contexts), lambda: (prompts, cache))

    def _padded(self, side: Literal["left", "right"]) -> Exchange:
        """Write after a cache that the model filled from a padded batch: all but a last token."""

        def read() -> tuple[Rows, Any]:
            batch = padded_inputs([row[:-1] for row in self._prompts], side)
            cache = self._generator.read(batch, self._capacity)
            return tuple(row[-1:] for row in self._prompts), cache

        return self._write(Exchange(f"{side}_pads", self._prompts), read)

    def _write(self, asked: Exchange, begin: Callable[[], tuple[Rows, Any]]) -> Exchange:
        values = {n: v for n, v in asdict(asked.setting).items() if v is not None}

        def watch(rows: Sequence[Sequence[int]]) -> dict[int, int]:
            return {b: n for b, n in asked.cuts.items() if len(rows[b]) >= n}

        written, refused = None, ""
        try:
            prompts, cache = begin()
            written = self._generator.write(
                prompts,
                NEW,
                setting=values,
                eos=asked.eos,
                seeds=asked.seeds,
                cache=cache,
                watch=watch if asked.cuts else None,
                every=EVERY if asked.cuts else 1,
            )
        except JaxLlamaError as error:
            refused = str(error)
        except Exception as error:  # a crash is a finding, and the other modes have theirs
            refused = f"{type(error).__name__}: {error}"
        return replace(asked, written=written, refused=refused)


NAMES = ("greedy", "eos", "continued", "left_pads", "right_pads", "watched", "sampled", "seeded")


def prompt_rows(inputs: Inputs) -> Rows:
    """Return the real tokens of a ragged batch as prompts."""
    return tuple(
        tuple(map(int, row[valid])) for row, valid in zip(inputs.tokens, inputs.valid, strict=True)
    )


def _ends(texts: Rows) -> tuple[int, ...]:
    """Return what ends row 0 at its fourth token at the latest, and an id that nobody writes."""
    written = {token for row in texts for token in row}
    return texts[0][min(3, len(texts[0]) - 1)], next(
        i for i in range(len(written) + 1) if i not in written
    )
