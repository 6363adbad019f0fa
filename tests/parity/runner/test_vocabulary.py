"""Rows of the embedding that no text has: wrong ones are seen, or said to be unseen."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from witnesses import small

from jaxllama.model import Llama
from parity.comparison.tolerance import LIMITS
from parity.lockstep.comparator import PassResult
from parity.result import Result
from parity.runner import run, vocabulary
from parity.runner.vocabulary import Vocabulary, batches, spread, widen, worst_first
from parity.scenarios import scenario
from parity.subjects.jaxllama.subject import JaxLlama

# Of the vocabulary's 264 rows, none of the prompt's.
PROMPT, UNSEEN = (1, 2, 3), 200


def judged(**options: Any) -> Result:
    settings: dict[str, Any] = {"dtypes": "f64", "modes": "free", "scenarios": "causal"}
    return run.run(small(), **(settings | {"prompt": PROMPT} | options))


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model lose one row where it looks ids up."""
    embed = Llama.embed

    def lose(self: Any, tokens: Any, *rest: Any, **named: Any) -> Any:
        return embed(self, jnp.where(tokens == UNSEEN, 7, tokens), *rest, **named)

    monkeypatch.setattr(Llama, "embed", lose)


def test_a_row_that_no_text_has_is_looked_at_and_named(forgetful: None) -> None:
    result = judged()
    assert result.verdict == "divergent" and result.first_divergence is not None
    row = result.first_divergence.row
    assert (row.scenario, row.tap) == ("vocabulary", "embed")
    assert result.cause is not None and result.cause.confirmed
    assert result.cause.id == "vocabulary-rows"
    assert f"row {UNSEEN} replaced by row 7" in result.cause.summary
    # The batch of 264 tokens in which it was found is never run whole.
    assert [i["real_tokens"] for i in result.inputs] == [len(PROMPT)] * 2


def test_without_that_look_nobody_would_see_it(
    forgetful: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Vocabulary(PassResult(), None, 261)
    monkeypatch.setattr(vocabulary, "compare_vocabulary", lambda *_: nothing)
    result = judged()
    assert result.verdict == "equal"
    assert result.not_run[-1] == "261 rows of the embedding"


def test_a_short_prompt_takes_no_more_batches_than_a_long_one() -> None:
    checkpoint = small()
    like = scenario("left_padded", list, checkpoint.config, length=6, prompt=[1, 2])
    wide = widen(like, 100)
    assert 100 <= wide.valid.sum() < 100 + like.valid.sum()
    assert np.array_equal(wide.mask[: len(like.mask)], like.mask)
    assert len(batches(wide, np.arange(100))) == 1 < len(batches(like, np.arange(100)))


def test_a_batch_is_narrowed_to_its_worst_rows_with_some_right_ones(forgetful: None) -> None:
    checkpoint = small()
    like = scenario("causal", list, checkpoint.config, length=3, prompt=PROMPT)
    (wide,) = batches(widen(like, 90), np.arange(120, 210))
    subject = JaxLlama(Llama.from_pretrained(checkpoint, dtype="float64"), "f64")
    found = worst_first(checkpoint, subject, wide)
    assert len(found) == 90 and found[0] == UNSEEN
    assert found[3] == 209  # exact, as all but one


def test_a_whole_vocabulary_takes_as_many_batches_as_it_needs() -> None:
    checkpoint = small()
    like = scenario("left_padded", list, checkpoint.config, length=6, prompt=[1, 2])
    ids = np.arange(3, 40)
    looked = batches(like, ids)
    assert len(looked) == -(-len(ids) // int(like.valid.sum()))
    assert {i for one in looked for i in one.tokens[one.valid].tolist()} == {*ids.tolist()}
    for one in looked:
        assert np.array_equal(one.tokens[~one.valid], like.tokens[~like.valid])
    assert spread(ids, 4).tolist() == [3, 15, 27, 39] and spread(ids, 99).tolist() == ids.tolist()


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_without_float64_the_widest_dtype_is_held_to_its_noise(dtype: str) -> None:
    result = judged(dtypes=dtype)
    (row,) = [row for row in result.rows if row.scenario == "vocabulary"]
    assert row.passed and row.lane == dtype and row.limit == LIMITS[dtype].rho("free")


def test_what_runs_whole_is_asked_once_and_the_rest_is_said() -> None:
    class Whole(JaxLlama):
        can_force = False

    result = judged(subject=Whole)
    assert result.verdict == "equal"
    # Three in the prompt, three in one batch more.
    assert result.not_run[-1] == "258 rows of the embedding"


def test_who_shows_no_embedding_is_told_what_was_not_seen() -> None:
    class Unnamed(JaxLlama):
        def __init__(self, model: Any, lane: str) -> None:
            super().__init__(model, lane)
            self.absent = frozenset({"embed"})

        def start(self, inputs: Any) -> Any:
            run = super().start(inputs)
            step = run.step
            run.step = lambda force=None: {n: x for n, x in step(force).items() if n != "embed"}
            return run

    result = judged(subject=Unnamed)
    assert result.verdict == "equal"
    assert result.not_run[-1] == "261 rows of the embedding"
