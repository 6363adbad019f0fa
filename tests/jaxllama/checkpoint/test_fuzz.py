"""Hostile files: see tests/support/fuzz_families.py for what is done to them."""

from __future__ import annotations

from pathlib import Path

import fuzzing
import pytest
from fuzz_families import FAMILIES
from planted_families import PLANTED

PART = 0.13


def test_nothing_is_believed_and_nothing_hangs(tmp_path: Path) -> None:
    """A part of `make fuzz`, of every kind of file."""
    tries = {name: max(3, round(PART * family.tries)) for name, family in FAMILIES.items()}
    found = fuzzing.fuzz(tries, tmp_path, seed=7, workers=1)
    assert not found.wrong, "\n".join(found.wrong)
    assert found.total.total() == sum(tries.values()) >= 300
    # Most of the damage matters; some hits padding, or a field that nobody reads.
    assert found.total["refused"] > 0.6 * found.total.total()
    assert found.counts["bits, manifest"] == {"manifest": tries["bits, manifest"]}
    assert {*found.counts} == {*FAMILIES} and "templates" in found.table()


@pytest.mark.parametrize("kind", PLANTED)
def test_every_way_to_go_wrong_is_counted(kind: str, tmp_path: Path) -> None:
    """Negative controls: a reader with one fault, which the next try does not suffer from."""
    seconds = 1.0 if kind == "hang" else 30.0
    found = fuzzing.fuzz({kind: 3}, tmp_path, workers=1, seconds=seconds, module="planted_families")
    assert found.total == {kind: 1, "refused": 2}
    assert found.wrong[0].startswith(f"{kind} 1: {kind}") and len(found.wrong) == 1
