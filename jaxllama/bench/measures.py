"""What is measured: reading a prompt of so many tokens, and writing for so many rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

# Tokens of the prompt before decoding, and of the writing before the clock starts: the first
# steps of a loop allocate, and torch.compile checks its guards.
DECODE_PROMPT, UNTIMED = 128, 8
# Prompts longer than this are timed in the first dtype alone: where a processor cannot multiply a
# narrow dtype, one of 2048 tokens takes minutes.
LONG = 512


@dataclass(frozen=True)
class Measure:
    """One thing that every variant is timed at.

    Attributes:
        kind: `prefill`: from token ids to the first new token of one row; `decode`: the steps
            that write further tokens.
        dtype: `f32` or `bf16`, of weights, arithmetic and cache.
        batch: B, rows.
        prompt: tokens a row of the prompt.
        new: steps that are timed (decode), 0 of a prefill.
    """

    kind: Literal["prefill", "decode"]
    dtype: str
    batch: int
    prompt: int
    new: int = 0

    @property
    def group(self) -> str:
        """The measure in whatever dtype: `prefill_512`, `decode_b8`."""
        size = self.prompt if self.kind == "prefill" else f"b{self.batch}"
        return f"{self.kind}_{size}"

    @property
    def name(self) -> str:
        """Its name in results; float32 goes without saying: `prefill_512`, `decode_b8_bf16`."""
        return self.group if self.dtype == "f32" else f"{self.group}_{self.dtype}"

    @property
    def tokens(self) -> int:
        """Tokens that one timed run reads or writes, of all rows."""
        return self.batch * (self.new or self.prompt)

    @property
    def least_rounds(self) -> int:
        """Rounds before it may end early: of a long prompt few, which take most of the time."""
        return 3 if self.prompt > LONG else 5

    @property
    def context(self) -> int:
        """Tokens that a row holds in the end."""
        return self.prompt + (UNTIMED + self.new if self.new else 1)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"name": self.name, **asdict(self), "tokens": self.tokens}


def measures(
    prompts: Sequence[int], batches: Sequence[int], dtypes: Sequence[str], new: int
) -> list[Measure]:
    """Return what is to be measured, a dtype after the other, what matters most first: time may run
    out.

    Args:
        prompts: lengths in tokens.
        batches: rows that are written at once.
        dtypes: `f32`, `bf16`.
        new: steps of decoding that are timed.
    """
    short = sorted((n for n in prompts if n <= LONG), reverse=True)
    first, rest = short[:1], short[1:]
    decode = [(DECODE_PROMPT, rows, new) for rows in batches]
    sizes = [
        *((n, 1, 0) for n in first),
        *decode,
        *((n, 1, 0) for n in rest),
        *((n, 1, 0) for n in sorted(prompts) if n > LONG),
    ]
    return [
        Measure("decode" if steps else "prefill", dtype, rows, prompt, steps)
        for dtype in dtypes
        for prompt, rows, steps in sizes
        if dtype == dtypes[0] or steps or prompt <= LONG
    ]


def prompt_of(measure: Measure, vocabulary: int) -> list[list[int]]:
    """Return the prompt of every row, the same for all variants.

    Args:
        measure: says how many rows and tokens.
        vocabulary: V of the model.
    """
    drawn = np.random.default_rng(0).integers(0, vocabulary, (measure.batch, measure.prompt))
    return [[int(token) for token in row] for row in drawn]
