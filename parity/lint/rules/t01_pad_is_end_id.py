"""T01: what is padding told from an id that also ends texts."""

from collections.abc import Iterator

import numpy as np

from parity.lint.case import Case
from parity.lint.findings import Finding, places
from parity.lint.rule import Rule
from parity.lint.samples import tril

RULE = Rule(
    id="T01",
    name="padding told from the end id",
    severity="error",
    checks=(
        "With the padding id among the end ids: masks that hide exactly the tokens of that id, and"
        " labels that leave exactly them out."
    ),
    why=(
        "Every real end of text is then padding too: between the turns of a chat the model cannot"
        " see where one ended, and in training it never learns to stop."
    ),
    example="tokenizer.pad_token = tokenizer.eos_token; valid = ids != tokenizer.pad_token_id",
    remedy="make validity from the lengths the tokenizer returns, or pad with an id of its own",
    sources=("transformers#23530", "trl#976"),
    needs=("ids", "pad_id"),
    consequences=("T02",),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire where the padding id ends texts, and hides or drops all its tokens."""
    assert case.ids is not None
    if case.pad_id not in case.eos_ids:
        return
    ends = case.ids == case.pad_id
    if case.labels is not None and ends.any() and (case.labels[ends] < 0).all():
        yield RULE.finding(
            "no label is an end id",
            f"every token {case.pad_id} is left out of the loss",
            "the first one of each text kept",
            where=places(ends, ("row", "key")),
        )
    kept = _kept(case)
    if kept is None or not ends.any() or (kept == ends).any():
        return
    # A hidden end with real tokens on both sides is no padding; at a row's edge it may be.
    before = np.maximum.accumulate(kept, 1)
    after = np.maximum.accumulate(kept[:, ::-1], 1)[:, ::-1]
    inside = ends & before & after
    certain = bool(inside.any())
    yield RULE.finding(
        "the mask hides every token of the id that pads and ends texts",
        f"token {case.pad_id} hidden" + ("" if certain else ", at the edges of rows"),
        "real ends of text seen",
        where=places(inside if certain else ends, ("row", "key")),
        severity="error" if certain else "warning",
    )


def _kept(case: Case) -> np.ndarray | None:
    """Return which tokens any query may see, shaped like the ids, or None where that is unknown."""
    assert case.ids is not None
    if case.is_padding_shaped:
        kept = case.reading.seen
    elif case.valid is not None:
        kept = case.valid.astype(bool)
    elif case.seen is not None:
        kept = np.broadcast_to(case.seen.any((1, 2)), (case.ids.shape[0], case.sizes[2]))
    else:
        return None
    return kept if kept.shape == case.ids.shape else None


_IDS = np.array([[11, 12, 2, 13, 14], [15, 16, 17, 2, 2]])


def mutant() -> Case:
    """Two turns of a chat, and padding, told apart by id 2."""
    valid = _IDS != 2
    mask = tril()[None, None] & valid[:, None, None, :]
    return Case(mask=mask, ids=_IDS, pad_id=2, eos_ids=(2, 3), valid=valid, empty_row="zero")


def twin() -> Case:
    """The same, with validity from the lengths: five and four."""
    valid = np.arange(5) < np.array([[5], [4]])
    mask = tril()[None, None] & valid[:, None, None, :]
    return Case(mask=mask, ids=_IDS, pad_id=2, eos_ids=(2, 3), valid=valid, empty_row="zero")
