"""The figures of quality: what each example adds to one, and the score of a sum.

Shapes: n examples, k statistics of one, R sums.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from jaxllama.errors import InputError
from parity.quality.bootstrap import Score

# e to it is still a float.
_LARGEST = 700.0
NAMES = ("perplexity", "bleu", "chrf", "rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class QualityMeasure:
    """A figure of quality.

    Attributes:
        name: of `NAMES`.
        title: in words.
        lower_is_better: of perplexity alone.
        statistics: of each model, what each example adds [n k].
        score: of sums of these.
        signature: how it was computed, in the words of the library that did; "" without one.
    """

    name: str
    title: str
    lower_is_better: bool
    statistics: list[np.ndarray]
    score: Score
    signature: str = ""


def perplexity(losses: np.ndarray, counts: np.ndarray) -> QualityMeasure:
    """Return the exponential of the mean loss of a token, each counting the same.

    Args:
        losses: of each example, summed over its tokens, in nats [models n].
        counts: of these tokens [n].
    """
    return QualityMeasure(
        "perplexity",
        "perplexity",
        True,
        [np.stack([one, counts], axis=1) for one in losses],
        lambda sums: np.exp(np.minimum(sums[:, 0] / sums[:, 1], _LARGEST)),
    )


def check_libraries() -> None:
    """Refuse to compare texts where what does so is not installed.

    Raises:
        InputError: a package is missing.
    """
    for name in ("sacrebleu", "rouge_score"):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise InputError(
                "prompts with references are measured by sacrebleu and rouge-score, and "
                f"{error.name} is not installed: pip install 'jaxllama[quality]'"
            ) from error


def text_measures(
    written: Sequence[Sequence[str]], references: Sequence[str]
) -> Iterator[QualityMeasure]:
    """Yield BLEU, chrF and ROUGE, each from 0 to 100.

    BLEU and chrF are of all texts as one corpus, ROUGE is the mean F measure.

    Args:
        written: of each model, its text of each example.
        references: what each ought to be.

    Source: sacrebleu (Post 2018) and rouge-score (Google Research, of Lin 2004).
    """
    from sacrebleu.metrics import BLEU, CHRF

    # Texts that look tokenised are no concern of a user of ours.
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    yield _of_corpus("bleu", "BLEU", BLEU(force=True), written, references)
    yield _of_corpus("chrf", "chrF", CHRF(), written, references)
    yield from _rouge(written, references)


def _of_corpus(
    name: str, title: str, metric: Any, written: Sequence[Sequence[str]], references: Sequence[str]
) -> QualityMeasure:
    # The library's own tests of significance take these two apart in the same way.
    statistics = [
        np.array(metric._extract_corpus_statistics(list(texts), [list(references)]), np.float64)
        for texts in written
    ]

    def score(sums: np.ndarray) -> np.ndarray:
        return np.array([metric._compute_score_from_stats(list(one)).score for one in sums])

    signature = str(metric.get_signature())
    return QualityMeasure(name, title, False, statistics, score, signature)


def _rouge(written: Sequence[Sequence[str]], references: Sequence[str]) -> Iterator[QualityMeasure]:
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names)
    found = [
        [scorer.score(wanted, text) for wanted, text in zip(references, texts, strict=True)]
        for texts in written
    ]
    for name in names:
        values = [np.array([[100 * s[name].fmeasure, 1.0] for s in one]) for one in found]
        title = name.replace("rouge", "ROUGE-")
        yield QualityMeasure(name, title, False, values, lambda sums: sums[:, 0] / sums[:, 1])
