"""Rows of a report from what `generate` wrote and what the reference says to it.

Shapes: B batch, n rows of logits, c new tokens of all rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Int

from parity.comparison.difference import WorstElement
from parity.comparison.tolerance import LIMITS, UNIT_ROUNDOFF, noise_floor
from parity.exact import MOST_PROBLEMS, exact_row
from parity.generation.choices import Context, check_choice, most_flips
from parity.generation.exchanges import COMBINED, NEW, Exchange
from parity.generation.sampler import Kept, Setting, keep
from parity.result import TapResult

MODE = "generate"
ROWS, TOKENS, LOGPROBS, CACHE = (
    f"generated.{name}" for name in ("rows", "tokens", "logprobs", "cache")
)
KEPT, DRAWS = "sampling.kept", "sampling.draws"
NAMES = (ROWS, TOKENS, LOGPROBS, CACHE, KEPT, DRAWS)

# Of one row's tokens; rows have as many as they wrote.
Logits = Float[np.ndarray, "_ V"]


def names_for(rows: Sequence[TapResult]) -> tuple[str, ...]:
    """Return what a run that generated is about: nothing where none did."""
    return NAMES if any(row.mode == MODE for row in rows) else ()


@dataclass(frozen=True)
class Said:
    """What the reference says to an exchange.

    Attributes:
        logits: of the float64 reference, for each new token of each row.
        honest: the same of honest variants, each with how coarse the lane is beside it.
    """

    logits: Sequence[Logits]
    honest: Sequence[tuple[Sequence[Logits], float]]


def near_row(
    tap: str,
    lane: str,
    scenario: str,
    dtype: str,
    error: Float[np.ndarray, " c"],
    noise: Float[np.ndarray, " c"],
    worst: WorstElement | None,
    *,
    problems: Sequence[str] = (),
    facts: dict[str, float] | None = None,
) -> TapResult:
    """Return a row of what has to be near: errors and noise of each token."""
    rho = error / noise
    at, limits = int(np.argmax(rho)), LIMITS[lane]
    return TapResult(
        tap=tap,
        lane=lane,
        scenario=scenario,
        mode=MODE,
        step=0,
        dtype=dtype,
        error=float(error.max()),
        noise=float(noise[at]),
        rho=float(rho[at]),
        limit=limits.rho(MODE),
        peak_rho=float(rho[at]),
        peak_limit=limits.peak(MODE),
        worst=worst if rho[at] > 0 else None,
        problems=tuple(problems[:MOST_PROBLEMS]),
        structural=bool(problems),
        facts=facts or {},
    )


def compare_exchange(one: Exchange, said: Said | None, lane: str) -> list[TapResult]:
    """Return the rows of one exchange.

    Args:
        one: what was asked and written.
        said: what the reference says to it; None where nothing was written.
        lane: dtype of the model that wrote.
    """
    rows = [exact_row(ROWS, lane, one.name, MODE, _row_problems(one))]
    if said is None or one.written is None:
        return rows
    scale = np.concatenate([np.ptp(row, axis=-1) / 2 for row in said.logits])
    minimum = LIMITS[lane].floor * UNIT_ROUNDOFF[lane]
    texts = one.texts()
    truth = _logprobs(said.logits, texts)
    errors = [
        np.abs(_logprobs(logits, texts) - truth) / scale * coarse for logits, coarse in said.honest
    ]
    noise = noise_floor(errors, np.ones(len(truth), bool), minimum)
    written = np.concatenate(
        [row[: len(text)] for row, text in zip(one.written.logprobs, texts, strict=True)]
    )
    dtype = one.written.logprobs.dtype.name
    error = np.abs(written - truth) / scale
    places = _places(texts)
    problems = [
        f"not finite at row {places[i]['B']}, token {places[i]['T']}"
        for i in np.flatnonzero(~np.isfinite(error))
    ]
    error = np.where(np.isfinite(error), error, np.inf)
    at = int(np.argmax(error / noise))
    worst = WorstElement(places[at], float(written[at]), float(truth[at]))
    if (chosen := _choices(one, said, lane, minimum)) is not None:
        rows.append(chosen)
    rows.append(near_row(LOGPROBS, lane, one.name, dtype, error, noise, worst, problems=problems))
    rows.append(exact_row(CACHE, lane, one.name, MODE, _cache_problems(one)))
    return rows


def _logprobs(logits: Sequence[Logits], texts: Sequence[Sequence[int]]) -> Float[np.ndarray, " c"]:
    """Return the log probability of each token written, row after row."""
    found = []
    for row, text in zip(logits, texts, strict=True):
        top = row.max(axis=-1)
        normaliser = top + np.log(np.exp(row - top[:, None]).sum(axis=-1))
        found.append(row[np.arange(len(text)), list(text)] - normaliser)
    return np.concatenate(found)


def _places(texts: Sequence[Sequence[int]]) -> list[dict[str, int]]:
    return [{"B": b, "T": t} for b, text in enumerate(texts) for t in range(len(text))]


def _choices(one: Exchange, said: Said, lane: str, minimum: float) -> TapResult | None:
    """Hold each token to what parity's own sampler chooses of the reference's logits.

    Its error is what the token's score lacks to the best one; its noise is that of the difference
    of the two. Where noise may move an edge of a filter, a token counts as right if one of the
    sets that are possible then has it. None where that is so of all.
    """
    assert one.written is not None
    texts = one.texts()
    places, tokens = _places(texts), [token for text in texts for token in text]
    wide = np.promote_types(one.written.logprobs.dtype, np.float32)
    made = []
    for place, token in zip(places, tokens, strict=True):
        b, t = place["B"], place["T"]
        logits = said.logits[b][t]
        scale = float(np.ptp(logits)) / 2
        context = Context(
            logits,
            [(honest[b][t] - logits) * coarse for honest, coarse in said.honest],
            minimum * scale,
            (*one.contexts[b], *texts[b][:t]),
            one.written.seeds[b],
            t,
        )
        choice = check_choice(token, one.setting, context, wide)
        made.append((choice, 2 * scale * one.setting.gain))
    choices, sizes = [choice for choice, _ in made], np.array([size for _, size in made])
    error = np.array([choice.lacks for choice in choices]) / sizes
    noise = np.array([choice.noise for choice in choices]) / sizes
    limit = LIMITS[lane].rho(MODE)
    flips, most = np.flatnonzero(error), most_flips(sum(choice.flips for choice in choices))
    facts = {
        "choices": float(len(choices)),
        "near_ties": float((error[flips] <= limit * noise[flips]).sum()),
        "undecided": float(sum(choice.undecided for choice in choices)),
    }
    cut = [
        f"row {place['B']}, token {place['T']}: {token} is cut away"
        for place, token, choice in zip(places, tokens, choices, strict=True)
        if choice.cut_away
    ]
    problems = list(cut)
    if len(flips) > most:
        at = places[flips[0]]
        problems.append(
            f"{len(flips)} of {len(choices)} tokens are not the reference's choice, the first in "
            f"row {at['B']} token {at['T']}; honest rounding makes up to {most:.2g}"
        )
    at = int(np.argmax(error / noise))
    worst = WorstElement(places[at], float(tokens[at]), float(choices[at].expected))
    found = near_row(
        TOKENS, lane, one.name, "int32", error, noise, worst, problems=problems, facts=facts
    )
    found = replace(found, structural=bool(cut))
    left_open = all(choice.undecided for choice in choices)
    return None if left_open and found.passed else found


def _row_problems(one: Exchange) -> list[str]:
    """Return what is not as documented of lengths, ends and what stands past them."""
    w = one.written
    if w is None:
        return [f"generate refused: {one.refused}"]
    problems = []
    for b, (ids, length) in enumerate(zip(w.tokens, map(int, w.lengths), strict=True)):
        text = ids[:length]
        if not length:
            problems.append(f"row {b}: no new token")
            continue
        if (wrong := np.flatnonzero((text < 0) | (text >= w.vocabulary))).size:
            at = int(wrong[0])
            problems.append(
                f"row {b}: new token {at} is {text[at]}, expected from 0 to {w.vocabulary - 1}"
            )
            continue
        ends = np.flatnonzero(np.isin(text, one.eos))
        expected, why = NEW, f"max_new_tokens is {NEW}"
        if len(ends):
            expected = int(ends[0]) + 1
            why = f"new token {ends[0]} is {text[ends[0]]}, which ends a row"
        if b in one.cuts and one.cuts[b] <= expected:
            expected, why = one.cuts[b], "the watcher ended it there"
        if length != expected:
            problems.append(f"row {b}: {length} new tokens, expected {expected}: {why}")
        reason = "stop" if b in one.cuts else "eos" if len(ends) else "length"
        if w.finish_reasons[b] != reason:
            problems.append(f"row {b}: finished by {w.finish_reasons[b]!r}, expected {reason!r}")
        if (ids[length:] != -1).any() or (w.logprobs[b, length:] != 0).any():
            problems.append(f"row {b}: past its end stand other than -1 and log probability 0")
    asked = (one.seeds,) if isinstance(one.seeds, int) else one.seeds
    if w.seeds[: len(asked)] != asked or len({*w.seeds}) != len(one.contexts):
        problems.append(f"seeds {w.seeds}, asked for {one.seeds}")
    return problems


def _cache_problems(one: Exchange) -> list[str]:
    """Return what is not as documented of the cache: all tokens but a row's last, in order."""
    w = one.written
    assert w is not None
    problems = []
    for b, (context, length) in enumerate(zip(one.contexts, map(int, w.lengths), strict=True)):
        expected, held = len(context) + length - 1, int(w.held[b])
        if held != expected:
            problems.append(f"row {b}: the cache holds {held} tokens, expected {expected}")
        positions = w.positions[b, : min(held, expected)]
        if (wrong := np.flatnonzero(positions != np.arange(len(positions)))).size:
            at = int(wrong[0])
            problems.append(f"row {b}: slot {at} is of position {positions[at]}, expected {at}")
    return problems


SETTINGS = {
    "temperature": Setting(temperature=0.7),
    "top_k": Setting(temperature=0.9, top_k=5),
    # Not 1: a filter before the temperature would keep another set.
    "top_p": Setting(temperature=0.5, top_p=0.8),
    "min_p": Setting(temperature=0.5, min_p=0.1),
    "penalty": Setting(temperature=1.0, repetition_penalty=1.3),
    "all_filters": COMBINED,
}


def with_ties(logits: Logits) -> Logits:
    """Return logits, and the first of them once more in steps of a half: many are equal."""
    return np.concatenate([logits, np.round(2 * logits[:1]) / 2])


def compare_sampling(
    name: str,
    lane: str,
    logits: Float[np.ndarray, "n V"],
    seen: Bool[np.ndarray, "n V"],
    kept: Float[np.ndarray, "n V"],
    drawn: Int[np.ndarray, " n"],
    gumbel: Float[np.ndarray, "n V"],
) -> list[TapResult]:
    """Return the rows of one of `SETTINGS`: the set drawn from with its weights, and the draws.

    Args:
        name: of the setting.
        lane: dtype of the run.
        logits: given to the subject, in the dtype that it samples in.
        seen: tokens seen so far.
        kept: what the subject draws from.
        drawn: tokens that it drew.
        gumbel: parity's own random numbers of the same keys.

    Returns:
        The rows; none where noise may move an edge of the filter of each of the logits.
    """
    dtype = logits.dtype.name
    u = UNIT_ROUNDOFF["f64" if dtype == "float64" else "f32"]
    minimum = LIMITS[lane].floor * UNIT_ROUNDOFF[lane] if lane != "bf16" else 4 * u
    count, size = logits.shape
    noise = np.full(count, minimum)
    kept_error, draw_error = np.zeros(count), np.zeros(count)
    best = np.zeros(count, int)
    worst_kept: list[WorstElement | None] = [None] * count
    problems: list[str] = []
    strange: list[str] = []
    facts = {"choices": float(count), "undecided": 0.0}
    for r in range(count):
        if not 0 <= drawn[r] < size:
            strange.append(f"logits {r}: {drawn[r]} is drawn, expected from 0 to {size - 1}")
            continue
        own = keep(logits[r], SETTINGS[name], seen[r])
        x = own.logits[np.isfinite(own.logits)]
        reach = float(np.abs(x).max())
        # Sums of V probabilities, by halves; logits divided and compared.
        if own.edge <= 32 * u * (1 + reach) * np.log2(size):
            facts["undecided"] += 1
            continue
        problems += _set_problems(r, kept[r], own)
        both = np.isfinite(own.logits) & np.isfinite(kept[r])
        if both.any():
            delta = np.where(both, np.abs(kept[r] - np.where(both, own.logits, 0.0)), 0.0)
            at = int(np.argmax(delta))
            kept_error[r] = delta[at] / reach
            index = {"T": r, "V": at}
            worst_kept[r] = WorstElement(index, float(kept[r, at]), float(own.logits[at]))
        score = own.logits + gumbel[r]
        best[r] = int(np.argmax(score))
        if drawn[r] != best[r]:
            lacks = score[best[r]] - score[drawn[r]]
            draw_error[r] = lacks / (2 * (reach + np.abs(gumbel[r]).max()))
    at, far = int(np.argmax(draw_error)), int(np.argmax(kept_error))
    token = WorstElement({"T": at}, float(drawn[at]), float(best[at]))
    if facts["undecided"] == count:
        return []
    near = partial(near_row, lane=lane, scenario=name, noise=noise, facts=facts)
    return [
        near(KEPT, dtype=dtype, error=kept_error, worst=worst_kept[far], problems=problems),
        near(DRAWS, dtype="int32", error=draw_error, worst=token, problems=strange),
    ]


def _set_problems(row: int, kept: Float[np.ndarray, " V"], own: Kept) -> list[str]:
    ours, theirs = np.isfinite(own.logits), np.isfinite(kept)
    if (ours == theirs).all():
        return []
    first = int(np.flatnonzero(ours != theirs)[0])
    what = "is cut away" if ours[first] else "is kept"
    return [
        f"logits {row}: {theirs.sum()} tokens are kept, expected {ours.sum()}; token {first} {what}"
    ]
