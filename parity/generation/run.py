"""`--mode generate`: what `jaxllama.generate` writes, held to the reference token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import numpy as np

from jaxllama.errors import InputError, argument
from parity.comparison.tolerance import UNIT_ROUNDOFF
from parity.exact import exact_row, reference_witness
from parity.generation.compare import (
    DRAWS,
    KEPT,
    LOGPROBS,
    MODE,
    SETTINGS,
    TOKENS,
    Said,
    compare_exchange,
    compare_sampling,
    with_ties,
)
from parity.generation.exchanges import NAMES, Conversation, Exchange, Rows
from parity.generation.reference import logits_after
from parity.generation.sampler import gumbel
from parity.lockstep.comparator import PassResult
from parity.result import TapResult
from parity.subjects.base import CheckpointLike, Subject
from parity.subjects.jaxllama.generate import Generator, draw, kept_logits
from parity.subjects.jaxllama.subject import JaxLlama
from parity.subjects.torch_reference.model import Variant
from parity.subjects.torch_reference.subject import TorchReference

VARIANTS: tuple[Variant, ...] = ("eager", "reordered")


def check_subjects(subjects: Mapping[str, Subject], *, alone: bool) -> None:
    """Refuse subjects that `jaxllama.generate` does not take, if nothing else was asked for.

    Raises:
        InputError: all are foreign.
    """
    foreign = [one.name for one in subjects.values() if not isinstance(one, JaxLlama)]
    if alone and len(foreign) == len(subjects):
        raise InputError(
            f"{_not_applicable(foreign[0])}; leave out {argument('subject')}, or add another mode"
        )


def _not_applicable(name: str) -> str:
    return f"mode {MODE} is about jaxllama.generate, which does not run the subject {name}"


def count_steps(subjects: Mapping[str, Subject]) -> int:
    """Return how often `compare_generation` tells its progress, of subjects by dtype."""
    return sum(isinstance(one, JaxLlama) for one in subjects.values()) * (len(NAMES) + 1)


class Reference:
    """What the reference and its honest variants say to texts, each text once."""

    def __init__(self, checkpoint: CheckpointLike) -> None:
        self._make = partial(TorchReference, checkpoint)
        self.exact = self._make(dtype="f64")
        self._honest: dict[str, list[TorchReference]] = {}

    def say(self, one: Exchange, lane: str) -> Said | None:
        """Return what they say to an exchange; None if nothing was written."""
        texts = one.texts()
        if not texts or not all(texts):
            return None
        rows = [(*context, *text) for context, text in zip(one.contexts, texts, strict=True)]
        starts = [len(context) for context in one.contexts]
        # Float64 borrows the noise of float32, as everywhere.
        narrow = "f32" if lane == "f64" else lane
        if narrow not in self._honest:
            self._honest[narrow] = [self._make(dtype=narrow, variant=v) for v in VARIANTS]
        coarse = UNIT_ROUNDOFF[lane] / UNIT_ROUNDOFF[narrow]
        return Said(
            logits_after(self.exact, rows, starts),
            [(logits_after(one, rows, starts), coarse) for one in self._honest[narrow]],
        )


def compare_generation(
    checkpoint: CheckpointLike,
    subjects: Mapping[str, Subject],
    prompts: Rows,
    progress: Callable[[str], None] = lambda _: None,
) -> PassResult:
    """Compare what models write with what the reference says to it.

    Args:
        checkpoint: what all run.
        subjects: by dtype; those that are no `JaxLlama` are passed over.
        prompts: token ids of three rows.
        progress: called with what is under way.

    Returns:
        The rows, in the order of the dtypes, and the reference as their witness.
    """
    reference, found = Reference(checkpoint), PassResult()
    for lane, subject in subjects.items():
        if not isinstance(subject, JaxLlama):
            continue
        rows: list[TapResult] = []
        for one in Conversation(Generator(subject.model), prompts).hold():
            if one.name == "sampled":  # one filter by itself tells more than all in a loop
                rows += compare_sampling_of(reference.exact, prompts, lane)
                progress(f"sampling {MODE}")
            rows += compare_exchange(one, reference.say(one, lane), lane)
            progress(f"{one.name} {MODE}")
        gap = max((row.error for row in rows if row.tap == LOGPROBS), default=0.0)
        found.rows += rows
        found.witnesses.append(reference_witness("torch", lane, MODE, rows, gap))
    return found


def compare_sampling_of(reference: TorchReference, prompts: Rows, lane: str) -> list[TapResult]:
    """Compare the subject's sampler with parity's own on the reference's logits."""
    dtype = np.dtype(np.float64 if lane == "f64" else np.float32)
    known = logits_after(reference, prompts, [1] * len(prompts))
    logits = with_ties(np.concatenate(known)).astype(dtype)
    seen = np.zeros(logits.shape, bool)
    for r in range(len(seen)):  # the first two thirds of a prompt, of each in turn
        row = prompts[r % len(prompts)]
        seen[r, list(row[: 1 + 2 * len(row) // 3])] = True
    keys = jax.vmap(jax.random.key)(np.arange(len(logits), dtype=np.uint32))
    numbers = np.stack([gumbel(key, logits.shape[-1], dtype) for key in keys])
    found = []
    for name, setting in SETTINGS.items():
        values = {n: v for n, v in vars(setting).items() if v is not None}
        try:
            kept, drawn = kept_logits(logits, values, seen), draw(logits, values, seen, keys)
        except Exception as error:  # as in an exchange
            problem = f"sampling failed: {type(error).__name__}: {error}"
            found.append(exact_row(KEPT, lane, name, MODE, [problem]))
            continue
        found += compare_sampling(name, lane, logits, seen, kept, drawn, numbers)
    return found


def notes(rows: Sequence[TapResult], subject: Subject) -> list[str]:
    """Return what must be said of choices that rounding leaves open, or that nothing was run."""
    rows = [row for row in rows if row.mode == MODE]
    if not rows:
        return [_not_applicable(subject.name)]
    found = []
    for lane in dict.fromkeys(row.lane for row in rows):
        here = [row for row in rows if row.lane == lane]
        facts = [row.facts for row in here if row.tap == TOKENS]
        counts = [sum(int(one[n]) for one in facts) for n in ("choices", "near_ties", "undecided")]
        if any(counts[1:]):
            found.append(
                f"{MODE}, {lane}: of {counts[0]} choices {counts[1]} fell on another token whose "
                f"score is as high to within noise, and {counts[2]} were held to all sets that "
                "noise at a filter's edge may leave; the text was followed as written"
            )
        facts = [row.facts for row in here if row.tap == KEPT and row.facts]
        counts = [sum(int(one[n]) for one in facts) for n in ("choices", "undecided")]
        if counts[1]:
            found.append(
                f"{MODE}, {lane}: {KEPT} and {DRAWS} leave open {counts[1]} of {counts[0]} rows of "
                "logits, at a filter's edge to within rounding"
            )
        if left := _not_compared(here):
            found.append(
                f"{MODE}, {lane}: not compared: {', '.join(left)}: noise at a filter's edge leaves "
                "every choice open"
            )
    return found


def _not_compared(rows: Sequence[TapResult]) -> list[str]:
    """Return in words what a dtype has no row of, though it was run: all of it was left open."""
    shown = {(row.tap, row.scenario) for row in rows}
    left = [
        f"{TOKENS} of {scenario}"
        for tap, scenario in dict.fromkeys((row.tap, row.scenario) for row in rows)
        if tap == LOGPROBS and (TOKENS, scenario) not in shown
    ]
    if any(scenario == "sampled" for _, scenario in shown):
        left += [f"{KEPT} of {name}" for name in SETTINGS if (KEPT, name) not in shown]
    return left
