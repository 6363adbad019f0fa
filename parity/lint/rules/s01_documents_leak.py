"""S01: a pair of tokens from two documents."""

from collections.abc import Iterator

from parity.lint.case import Case
from parity.lint.findings import Finding, places
from parity.lint.rule import Rule
from parity.lint.samples import packed, tril

RULE = Rule(
    id="S01",
    name="documents see each other",
    severity="error",
    checks="Visible pairs whose tokens belong to two segments.",
    why=(
        "A packed document then depends on what happened to be packed before it. The loss hardly"
        " moves; the model learns to condition on noise, and evaluation, unpacked, differs."
    ),
    example="seen = np.tri(T, dtype=bool)  # for a row of several documents",
    remedy="AND with segments(), and restart positions in each document",
    sources=("maxtext#4476", "axolotl#3796", "torchtitan#4801"),
    needs=("seen", "segments", "order"),
)


def check(case: Case) -> Iterator[Finding]:
    """Fire on visible pairs of two segments."""
    assert case.seen is not None
    assert case.k_segments is not None
    queries = case.of_queries(case.k_segments)
    apart = queries[:, None, :, None] != case.k_segments[:, None, None, :]
    real = case.q_valid[:, None, :, None] & (case.k_valid & case.slots.written)[:, None, None, :]
    wrong = case.seen & apart & real
    if wrong.any():
        where = places(wrong)
        yield RULE.finding("a key of another document is seen", "seen", "hidden", where=where)


def mutant() -> Case:
    """Packed rows under a causal mask alone."""
    return packed(mask=tril()[None, None])


def twin() -> Case:
    """Packed rows whose documents are apart."""
    return packed()
