"""M02: True and False, or seen and hidden, the wrong way round."""

from collections.abc import Iterator

import numpy as np

from parity.lint.case import Case
from parity.lint.findings import Finding, places
from parity.lint.rule import Rule
from parity.lint.samples import additive, left_padded, tril

RULE = Rule(
    id="M02",
    name="polarity inverted",
    severity="error",
    checks=(
        "An additive 0/-inf array that a kernel takes as bool; and a mask that becomes the intended"
        " one when every cell is turned round."
    ),
    why=(
        "-inf is truthy and 0 is falsy, so a cast of an additive mask to bool hides what should be"
        " seen and shows what should be hidden. Libraries also differ: PyTorch's key_padding_mask"
        " has True for padding, JAX's and SDPA's mask has True for seen."
    ),
    example="jax.nn.dot_product_attention(q, k, v, mask=bias.astype(bool))  # bias is 0/-inf",
    remedy="state the meaning in place of a cast: `bias == 0`, or `~is_padding`",
    sources=("transformers#38094", "x-transformers#160"),
    consequences=("M05", "M07", "M09", "C01", "C02", "C04", "P02", "W01", "S01", "S02"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on additive values in bool use, and on an exact inverse of what is intended."""
    if case.reading.use == "bool" and case.reading.kind == "additive":
        fill = case.reading.fills[0] if len(case.reading.fills) else 0.0
        yield RULE.finding(
            "an additive mask is taken as bool, which inverts it",
            f"0 (False) where seen and {fill:g} (True) where hidden",
            "True where seen",
        )
        return
    if case.seen is None or case.expected is None:
        return
    live = case.q_valid[:, None, :, None]
    wrong, inverse = (((mask != case.expected) & live).any() for mask in (case.seen, ~case.seen))
    decided = (case.expected & live).any() and (~case.expected & live).any()
    if wrong and not inverse and decided:
        hidden = ~case.seen & case.expected & live
        yield RULE.finding(
            "every cell is the opposite of what is intended", "hidden", "seen", where=places(hidden)
        )


def mutant() -> Case:
    """0/-inf handed to a kernel that wants bool."""
    return Case(mask=additive(tril(), -np.inf)[None, None], use="bool")


def twin() -> Case:
    """The same mask as bool, also with padding."""
    return left_padded()
