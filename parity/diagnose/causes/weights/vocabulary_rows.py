"""Some rows of the embedding or of the head are others.

Shapes: V vocabulary, n wrong rows, f what they are told apart by: features or tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.edits.edit import in_words
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite
from parity.diagnose.operators import map_weight, true_output, weight_name

CAUSE = Cause(
    id="vocabulary-rows",
    title="some rows of the embedding or of the head are others",
    what=(
        "Most tokens have their own row of the table; some, often the special ones at its end, "
        "have another's, a multiple, the mean of the rest, or values that the checkpoint has not."
    ),
    why=(
        "Tokens were added and their rows initialised but not loaded, the table was cut, padded or "
        "sharded unevenly, or ids are clamped to a smaller vocabulary. Text has none of these "
        "tokens, chats and the ends of texts have."
    ),
    sources=(),
    taps=("embed", "logits"),
    remedy=(
        "Load the table in full, and compare its last rows and those of special tokens with the "
        "file's."
    ),
    rank=4,
)

# A row differs, or is another, if it is so far off in units of its size and no farther.
EXACT = 1e-9
# More rows than these are no few; they are matched with all others one by one.
MOST_ROWS = 512
# Tokens by which rows of a head are told apart.
MOST_TOKENS = 64

Rows = Callable[[Tensor], Tensor]


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose what the wrong rows show: other rows, a factor, the others' mean, values of their
    own.
    """
    shown, own, table, which = _rows(e)
    if not 0 < len(which) <= MOST_ROWS:
        return
    where = f"row{'s' * (len(which) > 1)} {in_words(which.tolist())}"
    close = max(EXACT, 4 * e.enough)
    at, name = torch.from_numpy(which).long(), weight_name(e.short, e.layer, e.config)

    def proposed(said: str, rows: Rows) -> Iterator[Hypothesis]:
        def change(w: Tensor) -> Tensor:
            return w.double().index_copy(0, at, rows(w.double()))

        facts: Facts = {"effective": said, "configured": "as stored"}
        yield Hypothesis("vocabulary-rows", f"{name}: {said}", (map_weight(name, change),), **facts)
        if e.short == "embed" and e.config.tie_word_embeddings:

            def looked_up(site: MutationSite) -> Tensor:
                stored = site.reference.weight(name)
                return change(stored)[site.given["tokens"]].to(site.value.dtype)

            said = f"{said}, in look-ups alone"
            yield Hypothesis(
                "vocabulary-rows", f"{name}: {said}", (Mutation("embed", looked_up),), **facts
            )

    others = _nearest(shown, table)
    if _near(shown, table[others], close):
        taken = torch.from_numpy(others).long()
        yield from proposed(f"{where} {_copied(which, others)}", lambda w: w[taken])
    factor = float(f"{(shown * own).sum() / (own * own).sum():.6g}")
    if factor and _near(shown, factor * own, close):
        yield from proposed(f"{where} times {factor:g}", lambda w: factor * w[at])
    before = int(which[0])
    if before and _near(shown, table[:before].mean(0), close):
        yield from proposed(
            f"{where} the mean of those before", lambda w: w[:before].mean(0).expand(len(at), -1)
        )
    if e.short == "embed":
        values = torch.from_numpy(shown)
        yield from proposed(f"{where} of other values", lambda w: values)


def _rows(e: Evidence) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return wrong rows as shown and as they ought to be [n f], all rows [V f], and which [n]."""
    if e.short == "embed":
        ids, first = np.unique(e.inputs.tokens[:, e.columns][e.valid], return_index=True)
        shown, table = e.real("embed")[first], e.weight(weight_name("embed", None, e.config))
    else:
        some = np.unique(np.linspace(0, e.valid.sum() - 1, MOST_TOKENS).astype(int))
        shown, table = e.real("logits")[some].T, true_output(e)[some].T
        ids = np.arange(len(table))
    own = table[ids]
    size = np.linalg.norm(own, axis=1)
    wrong = ~(np.linalg.norm(shown - own, axis=1) <= max(EXACT, 4 * e.enough) * size)
    if wrong.all():
        wrong[:] = False  # another cause's
    return shown[wrong], own[wrong], table, ids[wrong]


def _near(shown: np.ndarray, expected: np.ndarray, close: float) -> bool:
    gap = np.linalg.norm(shown - expected, axis=1)
    return bool((gap <= close * np.linalg.norm(shown, axis=1)).all() and shown.any(1).all())


def _nearest(shown: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the row of the table that is nearest to each that is shown."""
    far = (table * table).sum(1)[:, None] - 2 * table @ shown.T
    return np.asarray(far.argmin(0))


def _copied(which: np.ndarray, others: np.ndarray) -> str:
    """Say which rows stand in the place of which."""
    steps = set((others - which).tolist())
    if len(set(others.tolist())) == 1:
        return f"replaced by row {others[0]}"
    if len(steps) == 1:
        by = steps.pop()
        return f"replaced by those {abs(by)} {'after' if by > 0 else 'before'}"
    listed = ", ".join(map(str, others[:8])) + ", ..." * (len(others) > 8)
    return f"replaced by rows {listed}"
