"""Other rules of which keys a query sees: each is told by its cells, and each has a name."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from jaxllama.checkpoint.samples import TINY
from parity.diagnose.cause import catalogue
from parity.diagnose.edits.edit import Edit
from parity.diagnose.edits.kinds import apply_edits, visible
from parity.diagnose.edits.visibility import READ, RULES, Sees, Sight, fitting_rules
from parity.scenarios import scenario
from parity.subjects.torch_reference.operands import call_operands
from parity.subjects.torch_reference.program import MASK, run_program

LENGTH = 13


@cache
def sight_of(name: str, start: int) -> Sight:
    """Return what the call from a column on is given."""
    inputs = scenario(name, list, TINY, length=LENGTH, prompt=range(40))
    given = call_operands(inputs, start, LENGTH)
    mask = torch.from_numpy(inputs.mask[:, start:].copy())
    return Sight(mask, *(given[name] for name in READ[1:]))


CALLS = [("left_padded", 0), ("packed", 0), ("windowed", 0), ("right_padded", 6)]


def told(rule: str, sight: Sight, target: Tensor) -> bool:
    return rule in [one.rule for one in fitting_rules(sight, target, sight.q_valid)]


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_told_by_its_cells(rule: str) -> None:
    seen = 0
    for name, start in CALLS:
        sight = sight_of(name, start)
        for number in list(RULES[rule].numbers(sight))[:6]:
            mask = RULES[rule].see(sight, number).expand_as(sight.mask)
            if torch.equal(mask & sight.q_valid, sight.mask & sight.q_valid):
                continue
            assert told(rule, sight, mask)
            odd = mask.clone()  # one cell is enough for it to be no rule's
            odd[0, -1, 2] ^= True
            assert not told(rule, sight, odd)
            seen += 1
    assert seen


def test_every_rule_has_one_name() -> None:
    named = [
        one.edits[0].operands
        for file in catalogue().values()
        for one in file.edits
        if one.of == "mask"
    ]
    assert sorted(named) == sorted((rule,) for rule in RULES)


def test_pads_may_see_what_the_rule_says_or_nothing() -> None:
    sight = sight_of("left_padded", 0)
    open_ = torch.ones_like(sight.mask)
    found = [one for one in fitting_rules(sight, open_, sight.q_valid) if one.rule == "open-pads"]
    assert found == [Sees("open-pads"), Sees("open-pads", real=True)]
    assert found[1].said == "every key visible, pads see nothing"


def test_a_rule_is_put_after_the_masks_program() -> None:
    inputs = scenario("packed", list, TINY, length=LENGTH, prompt=range(40))
    given = call_operands(inputs, 0, LENGTH)
    edit = Edit("mask", visible.ID, "mask", ("documents",), Sees("documents"))
    made = run_program(apply_edits(MASK, [edit]), given, None)  # type: ignore[arg-type]
    sight = sight_of("packed", 0)
    assert torch.equal(made, sight.past & sight.k_valid)
