"""What runs between two forced taps of an isolated run: one operator, or several.

A subject names some taps, and is given the reference's values at those alone. Between two of them
it computes with its own: an error there is that of a chain, and so must its noise be.
"""

from __future__ import annotations

from parity.taps import OPERANDS, split_name

# All that an operator may be given.
OPERAND_TAPS = frozenset(operand for operands in OPERANDS.values() for operand in operands)


def runs_one_operator(name: str, absent: frozenset[str]) -> bool:
    """Return whether all that a tap is computed of can be forced, in a subject of some taps."""
    kind, _ = split_name(name)
    operands = OPERANDS.get(kind, ())
    if "layers.input" in operands and "layers.input" in absent:  # it is the output before it
        operands = ("layers.output", *operands)
        operands = tuple(operand for operand in operands if operand != "layers.input")
    return not absent.intersection(operands)


def runs_chains(absent: frozenset[str]) -> bool:
    """Return whether a subject that does not name these taps runs several operators anywhere."""
    return bool(absent & OPERAND_TAPS)
