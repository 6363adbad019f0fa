"""Documents in rows, and their loss: packed or one by one, it is the same."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from small_llama import CONFIG, build, numpy_llama, random_weights, visible

from jaxllama.train.packing import TokenRows, pack, pieces
from jaxllama.train.step import Batch, summed_loss

LENGTH = 16
RNG = np.random.default_rng(0)
# Ids of 0 among them: a pad is what is said to be one.
DOCUMENTS = [RNG.integers(0, 5, n).tolist() for n in (16, 3, 11, 2, 7, 5, 9, 16, 4, 39)]


def batch_of(rows: TokenRows) -> Batch:
    return Batch(*map(jnp.asarray, rows))


def test_pieces_predict_every_token_once() -> None:
    for document in DOCUMENTS:
        cut = [*pieces(document, LENGTH)]
        assert all(2 <= len(piece) <= LENGTH for piece in cut)
        assert [one for piece in cut for one in piece[1:]] == document[1:]
    assert [*pieces([5], LENGTH)] == [*pieces([], LENGTH)] == []


def test_rows_hold_every_piece_once_and_little_else() -> None:
    rows = pack(DOCUMENTS, LENGTH)
    cut = sorted(piece for one in DOCUMENTS for piece in pieces(one, LENGTH))
    held = []
    for row in range(len(rows.tokens)):
        for number in range(rows.segments[row].max() + 1):
            there = rows.valid[row] & (rows.segments[row] == number)
            assert rows.positions[row][there].tolist() == list(range(there.sum()))
            held.append(rows.tokens[row][there].tolist())
    assert sorted(held) == cut
    assert len(rows.tokens) < len(cut) == len(pack(DOCUMENTS, LENGTH, packing=False).tokens)
    assert len(rows.tokens) == -(-sum(map(len, cut)) // LENGTH)  # as few as there can be


@pytest.fixture(scope="module")
def one_by_one() -> tuple[float, int]:
    """The sum of all documents' losses, each run alone, without pads, in plain NumPy."""
    total, count = 0.0, 0
    weights = random_weights(CONFIG)
    for document in DOCUMENTS:
        for piece in pieces(document, LENGTH):
            ids = np.array([piece])
            positions = np.arange(ids.size)[None]
            mask = visible(positions, np.ones_like(ids, bool))
            logits = numpy_llama(CONFIG, weights, ids, positions, mask)["logits"][0]
            log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            total -= log_probs[np.arange(ids.size - 1), ids[0, 1:]].sum()
            count += ids.size - 1
    return total, count


@pytest.mark.parametrize("packing", [True, False])
def test_packed_rows_have_the_loss_of_documents_one_by_one(
    packing: bool, one_by_one: tuple[float, int]
) -> None:
    rows = pack(DOCUMENTS, LENGTH, packing=packing)
    total, _, count = summed_loss(build(), batch_of(rows))
    assert int(count) == one_by_one[1]
    assert float(total) == pytest.approx(one_by_one[0], rel=1e-12)


def test_documents_that_see_each_other_are_found(
    one_by_one: tuple[float, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Batch.described
    monkeypatch.setattr(
        Batch, "described", lambda self: seen(self._replace(segments=jnp.zeros_like(self.segments)))
    )
    total, _, _ = summed_loss(build(), batch_of(pack(DOCUMENTS, LENGTH)))
    assert float(total) != pytest.approx(one_by_one[0], rel=1e-4)
