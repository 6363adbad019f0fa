"""What a rule may need to know, and whether a case knows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from jaxllama.errors import argument
from jaxllama.masks import Mask
from jaxllama.masks.specs import Chunked, Window
from parity.lint.case import Case


def lacks(case: Case, needs: tuple[str, ...]) -> list[str]:
    """Return which of a rule's needs a case does not meet, in words."""
    return [NEEDS[need][1] for need in needs if not NEEDS[need][0](case)]


def walk(rule: Mask) -> Iterator[Mask]:
    """Yield a rule and all its parts."""
    yield rule
    for part in rule.parts():
        yield from walk(part)


def intends(case: Case, kind: type[Mask]) -> bool:
    """Whether the intended rule has a part of this kind."""
    rule = case.intended_rule
    return rule is not None and any(isinstance(part, kind) for part in walk(rule))


NEEDS: dict[str, tuple[Callable[[Case], bool], str]] = {
    "array": (lambda c: c.mask is not None, "an array (a spec was given)"),
    "spec": (lambda c: c.spec is not None or c.window is not None or bool(c.problems), "a spec"),
    "seen": (lambda c: c.seen is not None, "a mask whose shape fits its tokens"),
    "additive": (lambda c: c.reading.kind == "additive", "an additive mask"),
    "stated": (
        lambda c: c.intended is not None and c.intended != "default",
        f"a rule stated with {argument('intended')}",
    ),
    "cache": (
        lambda c: c.past is not None or c.slot_positions is not None or c.sizes[1] != c.sizes[2],
        "a cache",
    ),
    "chunked": (lambda c: intends(c, Chunked), "an intended rule with chunks"),
    "window": (lambda c: intends(c, Window), "an intended rule with a window"),
    "expected": (lambda c: c.expected is not None, "an intended rule"),
    "ids": (lambda c: c.ids is not None, "input ids"),
    "positions": (lambda c: c.positions is not None, "positions"),
    "segments": (lambda c: c.segments is not None, "segments"),
    "padding": (lambda c: bool((~c.k_valid).any()), "padding (none is known)"),
    "validity": (lambda c: c.valid is not None, "validity of each token"),
    "order": (
        lambda c: c.slots.known,
        "the cache's length, or positions of its slots where it is a ring",
    ),
    "sequence": (
        lambda c: c.slots.known and c.slot_positions is None,
        "tokens in the order of their slots",
    ),
    "slots": (
        lambda c: c.slot_positions is not None or c.past is not None and c.slots.known,
        "the cache's length, or positions of its slots",
    ),
    "past": (lambda c: c.past is not None, "the cache's length"),
    "scores_dtype": (lambda c: c.scores_dtype is not None, "the scores' dtype"),
    "pad_id": (lambda c: c.pad_id is not None, "the padding id"),
}
