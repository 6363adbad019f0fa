"""Edits that explain an operator, as hypotheses to be tried on the whole reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from parity.diagnose.cause import Hypothesis
from parity.diagnose.edits.edit import EVERYWHERE, Edit, Explanation
from parity.diagnose.edits.kinds import edited_within
from parity.diagnose.edits.operations import Rounded
from parity.diagnose.edits.search import explanations
from parity.diagnose.edits.trial import operator_trial
from parity.diagnose.evidence import HELD_TAPS, Evidence
from parity.diagnose.mutations import Mutation
from parity.subjects.torch_reference.operands import SETUP, program_of, whole_program
from parity.subjects.torch_reference.program import operand_names

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
    ("keys", "values"),
)


def edited_operators(evidence: Evidence, cause: str, kinds: Sequence[str]) -> Iterator[Hypothesis]:
    """Yield the simplest edits of the tap's program: of all taps of its kind, then of it alone.

    Args:
        evidence: of the tap.
        cause: whose hypotheses they are.
        kinds: ids of the kinds of edits that may explain it.
    """
    trial = operator_trial(evidence)
    if trial is None:
        return
    others = [one for one in map(operator_trial, evidence.elsewhere) if one is not None]
    enough = max(EXACT, evidence.enough)
    for found in explanations(trial, kinds, enough, others, evidence.seconds)[:MOST]:
        once = _at_setup(found, evidence)
        if once is not None and trial.tap not in HELD_TAPS:
            yield _hypothesis(cause, found, (once,))
        alone = (_mutation(found),)
        twins = [alone[0], *_at_twins(found, evidence)]
        if trial.tap in HELD_TAPS and (also := _at_setup(found, evidence)):
            # What the cache says of its keys stands where they do.
            yield _hypothesis(cause, found, (*twins, also))
        if len(twins) > 1:
            yield _hypothesis(cause, found, tuple(twins))
        yield _hypothesis(cause, found, alone)


def _at_setup(found: Explanation, evidence: Evidence) -> Mutation | None:
    """Return the edits where a call is set up, if all of them are there."""
    for setup in SETUP:
        program = program_of(setup, evidence.config, cached=evidence.chunks is not None)
        assert program is not None
        if found.scope == EVERYWHERE and edited_within(program, found.edits):
            edits = tuple(replace(edit, tap=setup) for edit in found.edits)
            return replace(_mutation(found), tap=setup, edits=edits)
    return None


def _hypothesis(cause: str, found: Explanation, changes: tuple[Mutation, ...]) -> Hypothesis:
    taps = ", ".join(change.tap for change in changes)
    return Hypothesis(cause, f"{taps}: {found.said}", changes, left=found.left)


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
    if len(read[0]) != len(read[1]):
        return None
    names = dict(zip(*read, strict=True)) | {step.name: step.name for step in ours}
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
    return name in ("*", "+", "left out", "twice", "after", "halves", "exchanged") or name.isdigit()
