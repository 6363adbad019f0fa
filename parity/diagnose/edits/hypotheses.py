"""Edits that explain an operator, as hypotheses to be tried on the whole reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from parity.diagnose.cause import Hypothesis, catalogue
from parity.diagnose.edits.edit import Edit, Explanation
from parity.diagnose.edits.kinds import edited_within
from parity.diagnose.edits.named import NamedEdits, read_by
from parity.diagnose.edits.operations import Rounded
from parity.diagnose.edits.search import explanations
from parity.diagnose.evidence import HELD_TAPS, Evidence
from parity.diagnose.mutations import Mutation
from parity.subjects.torch_reference.operands import SETUP, program_of, whole_program
from parity.subjects.torch_reference.program import operand_names

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial

# What edits have for operands that are no values.
WORDS = ("*", "+", "left out", "twice", "after", "halves", "exchanged", "exchanged in it", "rows")
# Explanations that are tried on the whole reference, with each of their taps.
MOST = 6
# What is left of an operator's inputs in float64 is its last places.
EXACT = 1e-11
# Taps that one function computes: what is wrong there may be wrong in all of them.
TWINS = (
    ("input_layernorm", "post_attention_layernorm", "norm"),
    ("q_rope", "k_rope"),
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ("post_attention", "output"),
    ("attn_scores", "attn_context"),
    ("keys", "values"),
)


def edited_operators(evidence: Evidence, cause: str, kinds: Sequence[str]) -> Iterator[Hypothesis]:
    """Yield the simplest edits of the tap's program: of all taps of its kind, then of it alone.

    Args:
        evidence: of the tap.
        cause: whose hypotheses they are.
        kinds: ids of the kinds of edits that may explain it.
    """
    trial = evidence.trial
    if trial is None:
        return
    others = [one.trial for one in evidence.elsewhere if one.trial is not None]
    enough = max(EXACT, evidence.enough)
    read = read_by(trial)
    patterns = [pattern for _, one in _names_at(trial.tap) for pattern in one.edits]

    def is_named(edit: Edit) -> bool:
        return any(pattern.fits(edit, read) for pattern in patterns)

    best = explanations(trial, kinds, enough, others, evidence.seconds, is_named)
    for found in best[:MOST]:
        alike = tuple(one.said for one in best if one is not found)
        for hypothesis in hypotheses_of(evidence, cause, found):
            yield replace(hypothesis, alike=alike)


def hypotheses_of(
    evidence: Evidence, cause: str, found: Explanation, one: NamedEdits | None = None
) -> Iterator[Hypothesis]:
    """Yield an explanation where it may hold: where a call is set up, in like taps, in this tap.

    Args:
        evidence: of the tap.
        cause: whose hypotheses they are.
        found: the explanation.
        one: what the cause calls it; None where its parts may have names.
    """
    trial = evidence.sight if one is not None and one.of else evidence.trial
    assert trial is not None
    if one is None:
        parts = tuple(_parts(trial, cause, found))
        called = Hypothesis(cause, found.said, parts=parts)
    else:
        called = _called(cause, one, trial, found)

    def holding(*changes: Mutation) -> Hypothesis:
        taps = ", ".join(change.tap for change in changes)
        parts = tuple(replace(part, said=f"{taps}: {part.said}") for part in called.parts)
        said = f"{taps}: {called.said}"
        return replace(called, said=said, changes=changes, left=found.left, parts=parts)

    tap, alone = evidence.short, _mutation(found)
    once = _at_setup(found, evidence)
    if one is not None and one.of:
        yield holding(_where_masked(evidence, alone, once))
        return
    if once is not None and tap not in HELD_TAPS:
        yield holding(once)
    twins = [alone, *_at_twins(found, evidence)]
    if once is not None and tap in HELD_TAPS:
        # What the cache says of its keys stands where they do.
        yield holding(*twins, once)
    if len(twins) > 1:
        yield holding(*twins)
    yield holding(alone)


def _where_masked(evidence: Evidence, found: Mutation, once: Mutation | None) -> Mutation:
    """Return edits of a mask where it is made, if it is shown to be wrong; else as layers go by
    it.
    """
    if "mask" in evidence.flagged and once is not None:
        return once
    edits = tuple(replace(edit, tap="attn_probs") for edit in found.edits)
    return replace(found, tap="attn_probs", edits=edits)


def _names_at(tap: str) -> Iterator[tuple[str, NamedEdits]]:
    """Yield what edits of a tap's program are called, with the cause whose name it is."""
    for file in catalogue().values():
        if tap in file.cause.taps:
            yield from ((file.cause.id, one) for one in file.edits)


def _parts(trial: OperatorTrial, cause: str, found: Explanation) -> Iterator[Hypothesis]:
    """Yield the names of edits that were found together; what has none is of the cause itself."""
    rest, read = list(found.edits), read_by(trial)
    for name, one in _names_at(trial.tap):
        if part := one.among(rest, read):
            rest = [edit for edit in rest if edit not in part]
            yield _called(name, one, trial, replace(found, edits=part))
    if rest and len(rest) < len(found.edits):
        yield Hypothesis(cause, replace(found, edits=tuple(rest)).said)


def _called(cause: str, one: NamedEdits, trial: OperatorTrial, found: Explanation) -> Hypothesis:
    """Return the words of a name, without changes."""
    said, where = one.words(one.said, trial, found), found.scope.said
    return Hypothesis(
        cause,
        said if where in said else f"{said} {where}",
        effective=one.words(one.effective, trial, found),
        configured=one.words(one.configured, trial, found),
    )


def named_edits(
    evidence: Evidence, cause: str, named: Sequence[NamedEdits]
) -> Iterator[Hypothesis]:
    """Yield edits that a cause is the name of; see `edited_operators`."""
    for one in named:
        trial = evidence.sight if one.of else evidence.trial
        if trial is None:
            continue
        # Numbers are rounded as far as noise allows, and no farther.
        enough, before = evidence.enough / 4 or EXACT, trial.left(())
        for found in one.explanations(trial, enough):
            if found.left < before:
                yield from hypotheses_of(evidence, cause, found, one)


def _at_setup(found: Explanation, evidence: Evidence) -> Mutation | None:
    """Return the edits where a call is set up, if all of them are there."""
    for setup in SETUP:
        program = program_of(setup, evidence.config, cached=evidence.chunks is not None)
        assert program is not None
        if not found.scope.axes and edited_within(program, found.edits):
            edits = tuple(replace(edit, tap=setup) for edit in found.edits)
            return replace(_mutation(found), tap=setup, edits=edits)
    return None


def _mutation(found: Explanation) -> Mutation:
    rounds = any(isinstance(edit.value, Rounded) for edit in found.edits)
    return Mutation(found.edits[0].tap, edits=found.edits, scope=found.scope, rounds=rounds)


def _at_twins(found: Explanation, evidence: Evidence) -> Iterator[Mutation]:
    tap = found.edits[0].tap
    for group in TWINS:
        for twin in group if tap in group else ():
            edits = _renamed(found.edits, tap, twin, evidence) if twin != tap else None
            if edits is not None:
                yield replace(_mutation(found), tap=twin, edits=edits)


def _renamed(
    edits: Sequence[Edit], tap: str, twin: str, evidence: Evidence
) -> tuple[Edit, ...] | None:
    """Return edits of one tap as those of another; None where they name what it has not."""
    cached = evidence.chunks is not None
    ours, theirs = (whole_program(n, evidence.config, cached=cached) for n in (tap, twin))
    if ours is None or theirs is None:
        return None
    read = operand_names(ours), operand_names(theirs)
    if [step.name for step in ours] == [step.name for step in theirs]:
        names = dict(zip(*read, strict=True)) | {step.name: step.name for step in ours}
    else:  # what both read
        names = {name: name for name in read[0] if name in read[1]}
    if any(n not in names and not _is_word(n) for e in edits for n in (e.step, *e.operands)):
        return None
    return tuple(
        replace(
            edit,
            tap=twin,
            step=names.get(edit.step, edit.step),
            operands=tuple(names.get(n, n) for n in edit.operands),
        )
        for edit in edits
    )


def _is_word(name: str) -> bool:
    """Return whether a name is an edit's own word or number, not that of a value."""
    return name in WORDS or name.isdigit()
