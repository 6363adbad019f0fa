"""Other rules of which keys a query sees, as operations on a mask.

Shapes: B batch, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.subjects.torch_reference.operations import Arithmetic


@dataclass(frozen=True)
class Sight:
    """What a call is given, of queries [B T 1] and of keys [B 1 S], and its right mask [B T S].

    Before the column `start` stands what earlier calls have fed.
    """

    mask: Tensor
    q_column: Tensor
    k_column: Tensor
    q_position: Tensor
    k_position: Tensor
    q_segment: Tensor
    k_segment: Tensor
    q_valid: Tensor
    k_valid: Tensor
    window: Tensor
    start: Tensor

    @property
    def past(self) -> Tensor:
        """Keys that come no later [B T S], pads included."""
        return self.k_column <= self.q_column

    @property
    def alike(self) -> Tensor:
        """Keys of the query's own document."""
        return self.q_segment == self.k_segment

    @property
    def slot(self) -> Tensor:
        """Each key's number among the real ones of its row [B 1 S]."""
        return self.k_valid.long().cumsum(-1) - 1

    @property
    def row(self) -> Tensor:
        """Each query's number within the call [B T 1]."""
        return self.q_column - self.start


# What a rule reads, in the order of `Sight`.
READ = tuple(Sight.__dataclass_fields__)

See = Callable[[Sight, int], Tensor]
Numbers = Callable[[Sight], range]


@dataclass(frozen=True)
class VisibilityRule:
    """One way to be wrong about which keys are seen.

    Attributes:
        said: in words, with `{}` for its number.
        see: the mask [B T S].
        numbers: those that may be tried.
    """

    said: str
    see: See
    numbers: Numbers = lambda s: range(1)


def _square(s: Sight) -> range:
    """Return the one number of a rule that exchanges queries and keys, if there are as many."""
    return range(1 if s.mask.shape[1] == s.mask.shape[2] else 0)


def _continued(s: Sight) -> range:
    """Return the one number of a rule that differs in later calls alone, in one of these."""
    return range(int(s.start > 0))


def _padded(s: Sight) -> range:
    """Return the one number of a rule about pads, where there are any."""
    return range(int(not s.k_valid.all()))


def _newest(s: Sight) -> Tensor:
    """Return each row's last slot [B 1 1]."""
    return s.slot.amax(-1, keepdim=True)


def _held(s: Sight) -> Tensor:
    """Return which rows have tokens from earlier calls [B 1 1]."""
    return (s.k_valid & (s.k_column < s.start)).any(-1, keepdim=True)


def _up_to_keys(first: int) -> Numbers:
    return lambda s: range(first, s.mask.shape[2])


def _several(s: Sight) -> range:
    """Return the one number of a rule that exchanges queries, if there are several."""
    return range(int(s.mask.shape[1] > 1))


def _next_rows(mask: Tensor) -> Tensor:
    """Return the mask whose queries have the next one's row, the last its own [B T S]."""
    return torch.cat([mask[:, 1:], mask[:, -1:]], 1)


def _by_position(s: Sight) -> Tensor:
    """Return what positions alone hide, in which pads stand where the first token does."""
    away = s.q_position - s.k_position
    return (away >= 0) & (away < s.window) & s.alike & s.k_valid


RULES: dict[str, VisibilityRule] = {
    "inverted": VisibilityRule("mask inverted", lambda s, n: ~s.mask),
    "inverted-real": VisibilityRule("mask inverted, pads hidden", lambda s, n: ~s.mask & s.k_valid),
    "inverted-position": VisibilityRule(
        "mask inverted, rows of pads too", lambda s, n: ~_by_position(s)
    ),
    "open": VisibilityRule("every real key visible", lambda s, n: s.k_valid.expand_as(s.mask)),
    "open-pads": VisibilityRule("every key visible", lambda s, n: torch.ones_like(s.mask)),
    "shifted": VisibilityRule(
        "keys j <= i + {} visible",
        lambda s, n: (s.k_column <= s.q_column + n) & s.k_valid,
        lambda s: range(1, 4),
    ),
    "shifted-position": VisibilityRule(
        "keys j <= i + {} visible, by position",
        lambda s, n: (s.k_position <= s.q_position + n) & s.alike & s.k_valid,
        lambda s: range(1, 4),
    ),
    "shifted-pads": VisibilityRule(
        "keys j <= i + {} visible, pads too",
        lambda s, n: s.k_column <= s.q_column + n,
        lambda s: range(1, 4),
    ),
    "next-row": VisibilityRule(
        "each query but the last sees what the next does", lambda s, n: _next_rows(s.mask), _several
    ),
    "next-row-position": VisibilityRule(
        "each query but the last sees what the next does, rows of pads too",
        lambda s, n: _next_rows(_by_position(s)),
        _several,
    ),
    "strict": VisibilityRule(
        "keys j <= i - {} visible",
        lambda s, n: s.mask & (s.k_position <= s.q_position - n),
        lambda s: range(1, 4),
    ),
    "strict-pads": VisibilityRule(
        "keys j <= i - {} visible, pads too",
        lambda s, n: s.k_column <= s.q_column - n,
        lambda s: range(1, 4),
    ),
    "window": VisibilityRule(
        "window {}",
        lambda s, n: s.past & s.k_valid & s.alike & (s.q_column - s.k_column < n),
        _up_to_keys(1),
    ),
    "window-position": VisibilityRule(
        "window {}, by position",
        lambda s, n: s.past & s.k_valid & s.alike & (s.q_position - s.k_position < n),
        _up_to_keys(1),
    ),
    "window-ignored": VisibilityRule("window ignored", lambda s, n: s.past & s.k_valid & s.alike),
    "blocks": VisibilityRule(
        "blocks of {}",
        lambda s, n: (
            s.mask
            & (
                torch.div(s.q_column, n, rounding_mode="floor")
                == torch.div(s.k_column, n, rounding_mode="floor")
            )
        ),
        _up_to_keys(2),
    ),
    "prefix": VisibilityRule(
        "prefix of {} open", lambda s, n: (s.mask | (s.k_column < n)) & s.k_valid, _up_to_keys(2)
    ),
    "hidden": VisibilityRule(
        "key {} hidden",
        lambda s, n: s.mask & ((s.k_column != n) | (s.q_column == n)),
        _up_to_keys(0),
    ),
    "pads": VisibilityRule(
        "pads visible", lambda s, n: s.past & s.alike & (s.q_column - s.k_column < s.window)
    ),
    "pads-queries": VisibilityRule(
        "padding on the query axis",
        lambda s, n: s.past & s.alike & (s.q_column - s.k_column < s.window) & s.q_valid,
    ),
    "right-padding": VisibilityRule(
        "right padding hidden",
        lambda s, n: s.past & (s.k_column < s.k_valid.sum(-1, keepdim=True)),
        _padded,
    ),
    "left-padding": VisibilityRule(
        "left padding hidden",
        lambda s, n: s.past & (s.k_column >= (~s.k_valid).sum(-1, keepdim=True)),
        _padded,
    ),
    "rows": VisibilityRule(
        "rows moved by {}",
        lambda s, n: s.past & s.k_valid.roll(n, 0),
        lambda s: range(1, len(s.mask) if _padded(s) else 1),
    ),
    "first-row": VisibilityRule(
        "every row sees what the first does",
        lambda s, n: s.mask[:1].expand_as(s.mask),
        lambda s: range(int(len(s.mask) > 1)),
    ),
    "documents": VisibilityRule(
        "documents of a row see each other",
        lambda s, n: s.past & s.k_valid & (s.q_column - s.k_column < s.window),
    ),
    "top-left": VisibilityRule(
        "queries counted from 0 in each call",
        lambda s, n: (s.k_column <= s.row) & s.k_valid,
        _continued,
    ),
    "top-left-slots": VisibilityRule(
        "queries counted from 0 in each call, keys by slot",
        lambda s, n: (s.slot <= s.row) & s.k_valid,
        _continued,
    ),
    "top-left-cut": VisibilityRule(
        "queries counted from 0 in each call, besides the right mask",
        lambda s, n: s.mask & (s.k_column <= s.row),
        _continued,
    ),
    "top-left-slots-cut": VisibilityRule(
        "queries counted from 0 in each call, keys by slot, besides the right mask",
        lambda s, n: s.mask & (s.slot <= s.row),
        _continued,
    ),
    # As a cache that counts from one slot back has them: of the newest slot it knows nothing.
    "slots-back": VisibilityRule(
        "a call's keys known one slot back",
        lambda s, n: torch.where(
            _held(s), s.k_valid & ((s.k_column < s.q_column) | (s.slot == _newest(s))), s.mask
        ),
        _continued,
    ),
    "own-call": VisibilityRule(
        "a call sees itself alone", lambda s, n: s.mask & (s.k_column >= s.start), _continued
    ),
    "transposed": VisibilityRule("mask transposed", lambda s, n: s.mask.mT, _square),
    "transposed-real": VisibilityRule(
        "mask transposed, pads hidden", lambda s, n: s.mask.mT & s.k_valid, _square
    ),
    "transposed-position": VisibilityRule(
        "mask transposed, rows of pads too", lambda s, n: _by_position(s).mT, _square
    ),
}


@dataclass(frozen=True)
class Sees:
    """A mask by a rule of `RULES`; `real` hides all from the queries of pads."""

    rule: str
    number: int = 0
    real: bool = False

    @property
    def said(self) -> str:
        said = RULES[self.rule].said.format(self.number)
        return f"{said}, pads see nothing" if self.real else said

    def __call__(self, arithmetic: Arithmetic, *read: Tensor) -> Tensor:
        sight = Sight(*read)
        seen = RULES[self.rule].see(sight, self.number).expand_as(sight.mask)
        return seen & sight.q_valid if self.real else seen


# Queries that a first look is at.
FEW = 24


def fitting_rules(sight: Sight, target: Tensor, compared: Tensor) -> list[Sees]:
    """Return the rules that show what is seen, with both ways to treat pads' queries.

    Args:
        sight: of a call.
        target: what its queries see [B T S].
        compared: which cells count, broadcastable to it.
    """
    fitting = []
    rows = torch.linspace(0, target.shape[1] - 1, min(FEW, target.shape[1])).long().unique()
    compared = compared.expand_as(target)
    wanted, here = target & compared, compared[:, rows]
    for name, rule in RULES.items():
        for number in rule.numbers(sight):
            mask = rule.see(sight, number).expand_as(target)
            if not torch.equal(mask[:, rows] & here, wanted[:, rows]):
                continue
            if not torch.equal(mask & compared, wanted):
                continue
            fitting.append(Sees(name, number))
            if not torch.equal(mask & sight.q_valid, mask):
                fitting.append(Sees(name, number, real=True))
    return fitting
