"""Two groups of texts side by side: which heads attend differently, and whether that is chance.

Shapes: L layers, N heads, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxllama.errors import InputError, argument
from parity.health.metrics.layer import LayerFigures
from parity.health.permutation import compare_paired, compare_unpaired, least_p

# A difference is said where chance makes one as large, in any head, in one of so many cases.
ALPHA = 0.05
# Differences below these are not said, however certain: rounding may make them.
LEAST_SHARE, LEAST_REACH = 1e-3, 0.1
FIGURE_WORDS = {"entropy": "entropy", "reach": "reach", "named": "weight on the named tokens"}


@dataclass(frozen=True)
class GroupDifference:
    """A head that attends differently to one group of texts.

    Attributes:
        figure: `entropy` (0 to 1), `reach` (tokens) or `named`, weight on the named tokens.
        layer, head: where.
        first, second: means of the two groups.
        p: corrected for all heads and figures.
    """

    figure: str
    layer: int
    head: int
    first: float
    second: float
    p: float


@dataclass(frozen=True)
class GroupComparison:
    """Two groups of texts, compared.

    Attributes:
        first, second: where they are from.
        counts: texts of each.
        lengths: mean tokens of each.
        paired: whether texts belong together in pairs.
        words: the named tokens.
        tested: how many figures of heads were compared, for which p is corrected.
        relabellings: how many were tried.
        differences: those that are significant, the most certain first.
        p: of every head, by figure [L, N]; NaN where a text has no such figure.
    """

    first: str
    second: str
    counts: tuple[int, int]
    lengths: tuple[float, float]
    paired: bool
    words: tuple[str, ...]
    tested: int
    relabellings: int
    differences: list[GroupDifference]
    p: dict[str, np.ndarray]


class NamedMass:
    """Collects how much weight each head gives to some tokens, row by row.

    Args:
        where: of each row, which tokens are named [T].
    """

    def __init__(self, where: Sequence[np.ndarray]) -> None:
        self._where = where
        self.mass: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, layer: int, row: int, weights: np.ndarray, visible: np.ndarray) -> None:
        named = self._where[row] & visible
        asked = named.any(axis=1)  # queries before the first such token cannot look at one
        if not asked.any():
            self.mass[row, layer] = np.full(len(weights), np.nan)
            return
        shown = np.where(named[asked], weights[:, asked], weights.dtype.type(0))
        self.mass[row, layer] = shown.sum(axis=2, dtype=np.float64).mean(axis=1)


def check_groups(first: int, second: int, *, paired: bool, second_path: Path) -> None:
    """Refuse groups that can prove nothing, before anything is run.

    Raises:
        InputError: too few texts, or pairs that do not match.
    """
    held = f"{first} text{'s' * (first != 1)} against {second} of {second_path}"
    if paired and first != second:
        raise InputError(
            f"{argument('paired', True)}: {held}; give one line for each line, or leave it out"
        )
    least = least_p(first, second, paired=paired)
    if least > ALPHA:
        need = "6 pairs" if paired else "4 texts of each group"
        raise InputError(
            f"{held}: so few give a p of {least:.2g} at the least, and {ALPHA} is asked for; give "
            f"at least {need}"
        )


def find_words(texts: Sequence[Sequence[str]], words: Collection[str]) -> list[np.ndarray]:
    """Return which tokens of each row read as one of `words`, spaces aside and in any case.

    Raises:
        InputError: a word is no token of any row.
    """
    wanted = {word.strip().casefold() for word in words}
    spelled = [[token.strip().casefold() for token in row] for row in texts]
    held = {token for row in spelled for token in row}
    if missing := sorted(wanted - held):
        raise InputError(
            f"{argument('token', missing[0])}: no token of the texts reads so; give a token as the "
            "tokenizer splits the text, such as one of its words"
        )
    return [np.array([token in wanted for token in row]) for row in spelled]


def group_figures(
    rows: Sequence[Sequence[LayerFigures]], named: NamedMass | None
) -> dict[str, np.ndarray]:
    """Return the figures that are compared, each [rows, L, N]; NaN where a row has none."""
    found: dict[str, list[np.ndarray]] = {}
    for number, layers in enumerate(rows):
        heads = [one.heads for one in layers]
        if any(one is None for one in heads):
            raise InputError("the subject shows no attention weights, which groups are compared by")
        found.setdefault("entropy", []).append(np.stack([h.entropy for h in heads if h]))
        found.setdefault("reach", []).append(np.stack([h.reach for h in heads if h]))
        if named is not None:
            mass = [named.mass[number, layer] for layer in range(len(layers))]
            found.setdefault("named", []).append(np.stack(mass))
    return {name: np.stack(values) for name, values in found.items()}


def compare_groups(
    figures: dict[str, np.ndarray],
    first: Sequence[int],
    second: Sequence[int],
    *,
    paired: bool,
    sources: tuple[str, str],
    lengths: Sequence[int],
    words: Collection[str],
) -> GroupComparison:
    """Compare groups of rows.

    Args:
        figures: of all rows, see `group_figures`.
        first: which rows are of the first group; `second` likewise, in pairs if `paired`.
        second: see `first`.
        paired: whether the texts belong together in pairs.
        sources: where the groups are from.
        lengths: tokens of each row.
        words: the named tokens.
    """
    shapes = {name: values.shape[1:] for name, values in figures.items()}
    flat = np.concatenate([figures[name].reshape(len(lengths), -1) for name in shapes], axis=1)
    labels = [(name, *place) for name, shape in shapes.items() for place in np.ndindex(shape)]
    a, b = flat[list(first)], flat[list(second)]
    known = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
    test = compare_paired if paired else compare_unpaired
    said = test(a[:, known], b[:, known])
    certain = np.full(flat.shape[1], np.nan)
    certain[known] = said.p
    parts = np.split(certain, np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1])
    differences = []
    for at, column in enumerate(np.flatnonzero(known)):
        name, layer, head = labels[column]
        least = LEAST_REACH if name == "reach" else LEAST_SHARE
        if said.p[at] <= ALPHA and abs(said.difference[at]) >= least:
            means = float(a[:, column].mean()), float(b[:, column].mean())
            differences.append(GroupDifference(name, layer, head, *means, float(said.p[at])))
    size = [float(np.mean([lengths[row] for row in group])) for group in (first, second)]
    return GroupComparison(
        first=sources[0],
        second=sources[1],
        counts=(len(first), len(second)),
        lengths=(size[0], size[1]),
        paired=paired,
        words=tuple(words),
        tested=int(known.sum()),
        relabellings=said.relabellings,
        differences=sorted(differences, key=lambda d: (d.p, -abs(d.first - d.second))),
        p={n: part.reshape(shapes[n]) for n, part in zip(shapes, parts, strict=True)},
    )
