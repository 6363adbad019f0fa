"""The measures are the libraries' own, whole and in sums of examples."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from jaxllama.errors import InputError
from parity.quality import measures
from parity.quality.measures import NAMES, perplexity, text_measures
from parity.quality.verdict import find_changes

REFERENCES = ["the cat sat on the mat", "a dog ran home today", "nothing at all ."]
WRITTEN = ["the cat sat on a mat", "a dog ran back home today", ""]


def score(one: measures.QualityMeasure, model: int = 0) -> float:
    return float(one.score(one.statistics[model].sum(axis=0)[None])[0])


def test_corpus_scores_are_the_librarys() -> None:
    found = {one.name: one for one in text_measures([WRITTEN, REFERENCES], REFERENCES)}
    assert ("perplexity", *found) == NAMES
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        expected = metric.corpus_score(WRITTEN, [REFERENCES])
        assert score(found[name]) == pytest.approx(expected.score)
        assert score(found[name], 1) == pytest.approx(100)
        assert found[name].signature == str(metric.get_signature())
    assert 0 < score(found["bleu"]) < 100


def test_rouge_is_what_it_is_by_hand() -> None:
    found = {one.name: one for one in text_measures([WRITTEN[:1]], REFERENCES[:1])}
    # Five of six words, and four of five pairs less the two with "a"; the longest run has five.
    assert score(found["rouge1"]) == pytest.approx(100 * 5 / 6)
    assert score(found["rouge2"]) == pytest.approx(100 * 3 / 5)
    assert score(found["rougeL"]) == pytest.approx(100 * 5 / 6)


def test_rouge_is_the_mean_of_texts() -> None:
    found = {one.name: one for one in text_measures([["a b", "x"]], ["a b", "y"])}
    assert score(found["rouge1"]) == pytest.approx(50)


def test_perplexity_counts_tokens_not_texts() -> None:
    one = perplexity(np.array([[4.0, 1.0]]), np.array([4.0, 2.0]))
    assert score(one) == pytest.approx(np.exp(5 / 6))
    assert np.isfinite(score(perplexity(np.array([[1e6]]), np.array([1.0]))))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        if name == "rouge_score":
            raise ModuleNotFoundError(name=name)
        return importlib.import_module(name)

    measures.check_libraries()
    monkeypatch.setattr(measures, "import_module", missing)
    with pytest.raises(InputError, match=r"rouge_score is not installed: pip install 'jaxllama\["):
        measures.check_libraries()


def spoilt(rng: np.random.Generator, share: float) -> list[str]:
    """Return references of which a share has lost its words."""
    return [text if rng.random() > share else "something else entirely" for text in LINES]


LINES = [f"line {n} of {n + 3} says that the {word} is blue" for n in range(30) for word in "abc"]


def test_damage_to_texts_is_found_and_chance_is_not() -> None:
    rng, alarms = np.random.default_rng(0), 0
    for seed in range(20):
        pair = [spoilt(rng, 0.2), spoilt(rng, 0.2)]
        found = find_changes(list(text_measures(pair, LINES)), seed, 1000)
        alarms += any(one.verdict != "no difference" for one in found)
    # 5 % of 20, and three standard deviations.
    assert alarms <= 3
    pair = [spoilt(rng, 0.1), spoilt(rng, 0.5)]
    found = find_changes(list(text_measures(pair, LINES)), 0, 1000)
    assert {one.verdict for one in found} == {"worse"}
