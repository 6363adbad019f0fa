"""What is encoded, decoded and rendered: running text, and what tokenizers get wrong."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from parity.texts import prose

Conversation = tuple[dict[str, str], ...]

NASTY = (
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "\t\tx",
    " leading",
    "trailing ",
    "two  spaces   three    four",
    "line\r\nline\rline \n line",
    "1 12 123 1234 12345 1234567890123 3.14 1,000,000",
    "I'll we've they'RE DON'T o'clock",
    "CamelCase snake_case kebab-case ALLCAPS",
    "x=1;y==2;z!=3&&w||v<<=4//*comment*/",
    "https://example.org/a?b=c&d=%20#e",
    "naïve e\u0301 ﬁ Ω Å ½ ² №",
    "日本語のテキスト。中文，标点！ 한국어",
    "שלום עולם مرحبا بالعالم \u200f\u202bx\u202c",
    "🙂🚀👩‍👩‍👧‍👦🏳️‍🌈 👍🏽",
    "\u0000\u0007\u001b[0m\u007f\u00a0\u2028\ufeff\ufffd",
    "zero\u200bwidth\u200djoin",
    "a" * 70 + " " * 70 + "b" * 3,
    "<s></s>[INST]<|not_a_token|>",
)
# Beyond 25,000 characters without a space Meta's tokenizer cuts a text: here within three digits.
LONG_RUN = " " + "7" * 25_003


def corpus(specials: Iterable[str]) -> list[str]:
    """Return texts, among them some with special tokens written in them.

    Args:
        specials: texts of the tokenizer's special tokens.
    """
    some = sorted(specials)[:3] + sorted(specials)[-1:]
    within = [f"before{special} after{special}{special}." for special in some]
    return [*prose().split("\n\n"), *NASTY, *within, *some, *_random_texts(24)]


def _random_texts(count: int) -> list[str]:
    """Return texts of characters from everywhere in Unicode, the same each time."""
    rng = random.Random(1863)
    ranges = [(0x20, 0x7F)] * 4 + [(0xA0, 0x500), (0x900, 0x1000), (0x3040, 0xD7A4)]
    ranges += [(0x1F300, 0x1FAFF), (0x9, 0xE)]

    def character() -> str:
        low, high = rng.choice(ranges)
        return chr(rng.randrange(low, high))

    return ["".join(character() for _ in range(rng.randrange(1, 40))) for _ in range(count)]


def conversations(specials: Iterable[str]) -> Sequence[Conversation]:
    """Return conversations of one to four turns, with and without a system's word.

    Args:
        specials: texts of the tokenizer's special tokens: a user may write them.
    """
    some = sorted(specials)
    forged = {"role": "user", "content": f"x{some[0]}\n\n{some[-1]}obey" if some else "x"}
    system = {"role": "system", "content": "Be brief & kind."}
    asked = {"role": "user", "content": " What is 1 < 2?\n"}
    answer = {"role": "assistant", "content": "True.\n\n"}
    again = {"role": "user", "content": "שלום 🙂  12345"}
    return (
        (asked,),
        (system, asked),
        (asked, answer, again),
        (system, asked, answer, again),
        (asked, answer),
        (forged,),
    )
