"""Two groups of texts: what differs is found where it is, and chance is not taken for it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attention_maps as maps
import numpy as np
import pytest

import parity
from jaxllama.errors import InputError
from parity.health import page
from parity.health.groups import GroupComparison, NamedMass, find_words
from parity.health.permutation import compare_paired, compare_unpaired, least_p
from parity.health.report import HealthReport

WORDS = ["river", "stone", "light", "green", "paper", "cloud", "seven", "table", "glass", "north"]


def sentences(count: int, word: str, seed: int) -> list[str]:
    """Return sentences of equal length, alike but for one word and for chance."""
    rng = np.random.default_rng(seed)
    picked = [rng.choice(WORDS, 4) for _ in range(count)]
    return [f"{a} {b} {word} {c} {d}" for a, b, c, d in picked]


def write(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


def compared(first: Path, second: Path, **options: Any) -> tuple[HealthReport, GroupComparison]:
    report = parity.check_health("tiny", text=first, against=second, gradients=False, **options)
    assert report.groups is not None
    return report, report.groups


def test_the_same_texts_twice_differ_in_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", sentences(8, "nurse", 0))
    for paired in (False, True):
        _, found = compared(file, file, paired=paired)
        assert found.differences == [] and found.tested == 2 * 5 * 6


def test_texts_of_one_kind_do_not_differ(tmp_path: Path) -> None:
    a, b = (write(tmp_path / f"{n}.jsonl", sentences(8, "nurse", n)) for n in (1, 2))
    report, found = compared(a, b)
    assert found.differences == [] and found.relabellings == 9999 + 1
    assert "No head differs." in page.page(report)


def test_a_word_that_draws_attention_is_found_and_said(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", sentences(8, "nurse", 3))
    b = write(tmp_path / "b.jsonl", sentences(8, "ZZZZZ", 3))
    report, found = compared(a, b, paired=True)
    assert found.differences and found.paired and found.relabellings == 2**8
    one = found.differences[0]
    assert one.p <= 0.05 and one.first != one.second
    assert found.differences[0].p == min(d.p for d in found.differences)
    document = report.to_dict()["groups"]
    assert document["differences"][0]["layer"] == one.layer
    text = page.page(report)
    assert f"<td>{one.layer}</td><td>{one.head}</td>" in text
    assert text.index('aria-label="entropy, p of each head') < text.index('id="findings"')
    assert found.p[one.figure][one.layer, one.head] == one.p
    assert sum(int((p <= 0.05).sum()) for p in found.p.values()) >= len(found.differences)


def test_weight_on_named_tokens_is_compared(tmp_path: Path) -> None:
    # One is a byte that stands once in each text, at another place in each group.
    first = [f"{word}# {' '.join(WORDS[i : i + 3])}" for i, word in enumerate(WORDS[:7])]
    second = [f"{' '.join(WORDS[i : i + 3])} {word}#" for i, word in enumerate(WORDS[:7])]
    a, b = write(tmp_path / "a.jsonl", first), write(tmp_path / "b.jsonl", second)
    _, found = compared(a, b, paired=True, token=["#"])
    named = [d for d in found.differences if d.figure == "named"]
    assert named and found.words == ("#",) and found.tested == 3 * 5 * 6
    with pytest.raises(InputError, match=r"^token='\?': no token of the texts reads so; "):
        compared(a, b, token=["?"])


def test_groups_that_can_prove_nothing_are_refused(tmp_path: Path) -> None:
    three = write(tmp_path / "three.jsonl", sentences(3, "nurse", 0))
    five = write(tmp_path / "five.jsonl", sentences(5, "nurse", 1))
    with pytest.raises(InputError, match=r"so few give a p of 0\.1 at the least, and 0\.05"):
        compared(three, three)
    with pytest.raises(InputError, match=r"3 texts against 5 of .*five\.jsonl; give one line for"):
        compared(three, five, paired=True)
    with pytest.raises(InputError, match=r"give at least 6 pairs$"):
        compared(five, five, paired=True)


def test_the_least_p_is_what_the_test_can_give() -> None:
    rng = np.random.default_rng(0)
    low, high = rng.normal(0, 0.01, (4, 1)), rng.normal(9, 0.01, (5, 1))
    found = compare_unpaired(low, high)
    assert found.relabellings == math.comb(9, 4)
    assert found.p[0] == 1 / math.comb(9, 4) <= least_p(4, 5, paired=False)
    pairs = compare_paired(np.concatenate([low, low]), np.concatenate([high, high])[:8])
    assert pairs.p[0] == 2 / 2**8 == least_p(8, 8, paired=True)


@pytest.mark.parametrize("test", [compare_unpaired, compare_paired])
def test_differences_are_found_where_they_are_and_corrected_for_all(test: Any) -> None:
    beside = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(12, 40)), rng.normal(size=(12, 40))
        a[:, 7] += 4.0
        found = test(a, b)
        said = set(np.flatnonzero(found.p <= 0.05).tolist())
        assert 7 in said
        beside += said != {7}
        assert found.difference[7] == pytest.approx(a[:, 7].mean() - b[:, 7].mean())
    assert beside <= 5, "0.05 of 30 is 1.5, and three standard deviations are 3.6 more"


@pytest.mark.parametrize("paired", [True, False])
def test_chance_is_taken_for_a_difference_no_more_often_than_promised(paired: bool) -> None:
    """Of 200 comparisons of nothing, each of 30 figures, some 10 may find something."""
    rng = np.random.default_rng(2)
    alarms = uncorrected = 0
    for _ in range(200):
        shared = rng.normal(size=(6, 1)) if paired else 0.0  # of a pair's texts
        a, b = (rng.standard_t(3, size=(6, 30)) + shared for _ in range(2))
        p = (compare_paired if paired else compare_unpaired)(a, b).p
        alarms += bool((p <= 0.05).any())
        alone = (compare_paired if paired else compare_unpaired)(a[:, :1], b[:, :1]).p
        uncorrected += bool((alone <= 0.05).any())
    assert alarms <= 20, "0.05 of 200 is 10, and three standard deviations are 9 more"
    assert uncorrected <= 20


def test_figures_that_do_not_vary_are_no_difference() -> None:
    same = np.full((6, 3), 0.5)
    assert compare_unpaired(same, same).p.tolist() == [1, 1, 1]
    assert compare_paired(same, same).p.tolist() == [1, 1, 1]


def test_named_mass_is_the_weight_on_the_named_keys() -> None:
    weights, seen = maps.soft(2, 9), maps.causal(9)
    where = np.zeros(9, bool)
    where[3] = True
    mass = NamedMass([where])
    mass(0, 0, weights, seen)
    np.testing.assert_allclose(mass.mass[0, 0], weights[:, 3:, 3].mean(axis=1))
    assert find_words([[" The", "cat"], ["a", "the "]], ["the"])[1].tolist() == [False, True]
    nowhere = NamedMass([np.zeros(9, bool)])
    nowhere(0, 0, weights, seen)
    assert np.isnan(nowhere.mass[0, 0]).all()
