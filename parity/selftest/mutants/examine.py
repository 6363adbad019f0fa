"""One mutant, judged by `parity.run` and graded by what it does in truth."""

from __future__ import annotations

import re
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import torch

from jaxllama import compilation_cache
from jaxllama.errors import JaxLlamaError
from parity.diagnose.compare_recording import with_pads_shown
from parity.diagnose.recording import record
from parity.result import CauseReport, Divergence, Result
from parity.runner.run import run
from parity.selftest.mutants import oracles
from parity.selftest.mutants.cells import real_cells
from parity.selftest.mutants.forms import Form, OriginalForms, differences, original_forms, said_by
from parity.selftest.mutants.oracles import Shown
from parity.selftest.mutants.patch import install
from parity.selftest.mutants.reach import Line, is_reached, lines_run
from parity.selftest.mutants.reading import reading_forms, write_files
from parity.selftest.mutants.rules import Mutant
from parity.selftest.mutants.tokenizing import tokens_forms, write_tokenizers
from parity.selftest.mutants.writing import writing_forms
from parity.taps import SETUP_TAPS as SETUP
from parity.taps import split_name

# What became of a mutant. `crash` and `refused`: the model raised, the latter in its own words;
# `broken`: the checker did.
Outcome = Literal["judged", "crash", "refused", "broken", "timeout"]
# Of a judged mutant that is not equivalent. `full`: the reference with the stated edits does what
# the mutant does, on fresh inputs too; `part`: at the first tap; `wrong`: it was said to be
# confirmed and does not; `none`: nothing was said, or only suspected.
Explained = Literal["", "full", "part", "wrong", "none"]


@dataclass(frozen=True)
class MutantResult:
    """What was seen of one mutant.

    Attributes:
        mutant: which.
        outcome: see `Outcome`.
        equivalent: whether the mutant does the same as the original on everything that was tried.
        detected: whether the verdict was `divergent`.
        found: the first tap, step, scenario, mode and dtype that the checker gave.
        expected: the first tap and step that differ from the original's in that run. Where nothing
            is explained, what was found if that differs; else the first that does, or where.
        explained: see `Explained`; empty in all groups but `model`.
        said: the cause's summary, or the exception's text.
        left: where the reference with the stated edits parts from the mutant on fresh inputs.
        seconds: of the whole examination, and of the judgement alone.
    """

    mutant: Mutant
    outcome: Outcome
    equivalent: bool = False
    detected: bool = False
    found: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    explained: Explained = ""
    said: str = ""
    left: str = ""
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def placed(self) -> bool:
        """Whether the first tap that differs is the one that was reported."""
        return self.detected and self.found[:2] == self.expected[:2]

    @property
    def caught_by(self) -> str:
        """What caught it: a mode and the row there, `refused`, `crash` or `timeout`; or nothing."""
        if self.outcome != "judged":
            return self.outcome
        if not self.detected:
            return ""
        tap, mode = self.found[0], self.found[3]
        if mode == "reading":
            return f"reading {tap if tap.startswith('config.') else 'tensor'}"
        return f"{mode} {split_name(tap)[0]}"


@dataclass(frozen=True)
class Originals:
    """What the unchanged code shows.

    Attributes:
        default: of the default run's inputs.
        forms: of models of all forms on fresh inputs.
        lines: that ran meanwhile.
        seconds: of a processor, that the default run takes.
    """

    default: Mapping[tuple[str, str, str], Shown]
    forms: Mapping[str, Mapping[tuple[str, str, str], Shown]]
    lines: frozenset[Line]
    seconds: float

    def reaches(self, mutant: Mutant) -> bool:
        """Return whether a mutant's statement runs."""
        return is_reached(mutant, self.lines)


def write_checkpoints(folder: Path) -> None:
    """Write the files that mutants of what reads are tried on. JAX is started by it."""
    _begin()
    write_tokenizers(folder)
    write_files(folder)


def originals(group: str, folder: Path) -> Originals | OriginalForms:
    """Run the unchanged code of a group. A process must not be forked after that: JAX has started.

    Args:
        group: of `parity.selftest.mutants.rules.GROUPS`.
        folder: with the files that `write_checkpoints` writes.
    """
    _begin()
    if group != "model":
        return original_forms(forms_of(group, folder))
    checkpoint = oracles.default_checkpoint()
    with lines_run() as lines:
        default = oracles.shown_by(checkpoint, oracles.default_inputs(checkpoint))
        forms = dict(oracles.each_form())
        began = time.process_time()
        default_run()
        seconds = time.process_time() - began
    return Originals(default, forms, frozenset(lines), seconds)


def forms_of(group: str, folder: Path) -> tuple[Form, ...]:
    """Return what a group's code is used on; of all groups but `model`."""
    if group == "writing":
        return writing_forms()
    return tokens_forms(folder) if group == "tokens" else reading_forms(folder)


def examine(mutant: Mutant, original: Originals | OriginalForms, folder: Path) -> MutantResult:
    """Put a mutant in this process's code, judge it and grade the judgement.

    Args:
        mutant: which; this process is of no other use after.
        original: what the unchanged code of its group shows.
        folder: as for `originals`.
    """
    _begin()
    began = time.perf_counter()
    judged = 0.0
    install(mutant)
    try:
        if isinstance(original, OriginalForms):
            found, judged = tabled(mutant, original, forms_of(mutant.group, folder))
        else:
            result = default_run()
            judged = time.perf_counter() - began
            found = _graded(mutant, result, original)
    except JaxLlamaError as error:
        found = MutantResult(mutant, "refused", said=_said(error))
    except Exception as error:
        where = _where(error)
        outcome: Outcome = "broken" if is_the_checkers(where) else "crash"
        found = MutantResult(mutant, outcome, said=_said(error), left=" < ".join(where))
    seconds = time.perf_counter() - began
    return replace(found, seconds=(seconds, judged or seconds))


def tabled(
    mutant: Mutant, original: OriginalForms, forms: Sequence[Form]
) -> tuple[MutantResult, float]:
    """Judge a mutant that runs in this process on what reaches it, as far as the first alarm.

    Returns:
        What was found, and the seconds of the checker's runs.
    """
    reaching = [form for form in forms if is_reached(mutant, original.seen[form.name].lines)]
    began = time.perf_counter()
    for form in reaching:
        if form.usual and form.run is not None:
            result = form.run()
            if result.verdict == "divergent":
                judged = time.perf_counter() - began
                return _placed(mutant, result, form, reaching, original), judged
    judged = time.perf_counter() - began
    at = _first_elsewhere(reaching, original)
    if at is None:
        return MutantResult(mutant, "judged", equivalent=True), judged
    form, what = at
    if form.run is not None and not form.usual:  # whoever has such a thing runs that
        result = form.run()
        if result.verdict == "divergent":
            return _placed(mutant, result, form, reaching, original), judged
    return MutantResult(mutant, "judged", expected=(what, form.name)), judged


def _first_elsewhere(forms: Sequence[Form], original: OriginalForms) -> tuple[Form, str] | None:
    """Return the first form on which this process's code does otherwise, and what differs there."""
    for form in forms:
        if wrong := differences(original.seen[form.name].shown, form.show()):
            return form, wrong[0]
    return None


def _placed(
    mutant: Mutant, result: Result, form: Form, forms: Sequence[Form], original: OriginalForms
) -> MutantResult:
    """Return a mutant that a run has caught, and whether what it named differs side by side."""
    assert result.first_divergence is not None
    row, cause = result.first_divergence.row, result.cause
    found = row.tap, str(row.step), row.scenario, row.mode, row.lane
    shown = said_by(form.show)
    wrong = (
        [row.tap] if isinstance(shown, str) else differences(original.seen[form.name].shown, shown)
    )
    expected, equivalent = found[:2], False
    if not wrong:
        at = _first_elsewhere(forms, original)
        expected, equivalent = ("", "") if at is None else (at[1], at[0].name), at is None
    elif row.tap not in wrong and f"{row.tap} {row.scenario}" not in wrong:
        expected = wrong[0], form.name
    return MutantResult(
        mutant,
        "judged",
        equivalent=equivalent,
        detected=True,
        found=found,
        expected=expected,
        said=cause.summary if cause else "; ".join(row.problems[:1]),
    )


def default_run(form: str = oracles.DEFAULT) -> Result:
    """Run the checker as a user would who also decodes, in all scenarios, on a model of a form.

    A dtype is run where those before it are equal: nothing in it comes first else.
    """
    for lane in oracles.LANES:
        result = run(
            oracles.checkpoints()[form],
            dtypes=lane,
            modes=("free", "isolated", "decode"),
            scenarios="all",
            length=oracles.LENGTH,
        )
        if result.verdict != "equal":
            break
    return result


def _begin() -> None:
    torch.set_num_threads(1)
    # An edited program is compiled to be run a few times: without optimisation in half the time.
    jax.config.update("jax_disable_most_optimizations", True)
    compilation_cache.turn_on()


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _where(error: Exception) -> list[str]:
    """Return the files and lines of ours that an exception came through, the innermost first."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    named = (f"{frame.filename}:{frame.lineno}" for frame in frames)
    ours = [
        name for name in named if "/parity/" in name or "/jaxllama/" in name or "<mutant>" in name
    ]
    return [re.sub(r".*/(parity|jaxllama)/", r"\1/", name) for name in ours[:4]]


def is_the_checkers(where: Sequence[str]) -> bool:
    """Return whether an exception is one of the checker's own code, not of the model it runs."""
    innermost = where[0] if where else ""
    runs_the_model = ("parity/subjects/jaxllama/", "parity/subjects/select.py")
    return innermost.startswith("parity/") and not innermost.startswith(runs_the_model)


def _graded(mutant: Mutant, result: Result, original: Originals) -> MutantResult:
    form, expected = oracles.DEFAULT, tuple[str, ...]()
    if result.verdict != "divergent":
        there = first_form_that_differs(original)
        if there is None:
            return MutantResult(mutant, "judged", equivalent=True)
        form, expected = there
        if form != oracles.DEFAULT:  # whoever has such a model runs that
            result = default_run(form)
    first, cause = result.first_divergence, result.cause
    if first is None:
        return MutantResult(mutant, "judged", said=result.verdict, explained="none")
    row = first.row
    found = MutantResult(
        mutant,
        "judged",
        detected=result.verdict == "divergent",
        found=(row.tap, str(row.step), row.scenario, row.mode, row.lane),
        expected=expected or _expected(first, original),
        said=cause.summary if cause else "",
    )
    if not found.expected:  # the checker alone sees a difference
        return replace(found, equivalent=first_form_that_differs(original) is None)
    explained, left = _explained(first, cause, form)
    return replace(found, explained=explained, left=left)


def first_form_that_differs(original: Originals) -> tuple[str, tuple[str, ...]] | None:
    """Return the form of model on which this process's code does otherwise than the unchanged.

    With it come the first tap and call that differ; None if nothing does, whatever the form.
    """
    for form, mine in oracles.each_form():
        for key, shown in original.forms[form].items():
            at = oracles.first_difference(shown, mine[key], oracles.SAME[key[2]])
            if at is not None:
                return form, (at[0], str(at[1]))
    return None


def _expected(first: Divergence, original: Originals) -> tuple[str, ...]:
    """Return the first tap and step that differ from the original's in the run that was blamed."""
    row, checkpoint = first.row, oracles.default_checkpoint()
    mode = row.mode if row.mode in ("decode", "production") else "free"
    batches = oracles.default_inputs(checkpoint)
    blamed = [one for one in batches if row.scenario in one.name.split("+")]
    if not blamed:  # rows of the vocabulary, which no scenario has
        return row.tap, str(row.step)
    (batch,) = blamed
    mine = oracles.shown_by(checkpoint, [batch], [row.lane])
    key = batch.name, mode, row.lane
    at = oracles.first_difference(original.default[key], mine[key], oracles.SAME[row.lane])
    return () if at is None else (at[0], str(at[1]))


def _explained(first: Divergence, cause: CauseReport | None, form: str) -> tuple[Explained, str]:
    if cause is None or cause.wrong_reference is None:
        return "none", ""
    left = difference_from_stated(first, cause, form)
    if not left:
        return "full", ""
    if cause.confirmed:
        return "wrong", left
    return ("part" if cause.id and not left.startswith(f"{first.row.tap} ") else "none"), left


def difference_from_stated(first: Divergence, cause: CauseReport, form: str) -> str:
    """Return where the stated edits and the mutant part on fresh inputs; empty if nowhere.

    Masks and positions that were read off one run are no statement about another.
    """
    checkpoint, lane = oracles.checkpoints()[form], first.row.lane
    layers = checkpoint.config.num_hidden_layers
    mode = "decode" if first.row.mode == "decode" else "free"
    unwatched = first.row.mode == "production"  # explained where attention in blocks is watched
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for inputs in oracles.fresh_inputs(checkpoint):
            subject = oracles.subject_of(checkpoint, lane)
            watched = subject.in_blocks() if unwatched else subject
            assert watched is not None
            chunks = oracles.chunks_of(inputs, mode)
            recording = record(watched, inputs, chunks, layers)
            mine = oracles.named_by_call(recording.stages, layers)
            wrong = cause.wrong_inputs(inputs, chunks)
            if wrong is None:
                return "masks or positions of one run alone"
            wrong = with_pads_shown(recording, wrong)  # which is nobody's business
            made = oracles.show(cause.wrong_reference, wrong, mode, layers)
            made, mine = (real_cells(shown, inputs) for shown in (made, mine))
            if unwatched:  # what a call sets up is not shown there: it is what attention obeys
                mine = {name: x for name, x in mine.items() if name.split(".", 1)[1] not in SETUP}
            at = oracles.first_difference(made, mine, 100 * oracles.SAME[lane])
            if at is not None:
                return f"{at[0]} ({inputs.name}, call {at[1]})"
    return ""


def summary_of(results: Sequence[MutantResult]) -> dict[str, Any]:
    """Return the figures of a population."""
    judged = [r for r in results if r.outcome == "judged"]
    live = [r for r in judged if not r.equivalent]
    found = [r for r in live if r.detected]

    def share(kind: Explained) -> int:
        return sum(r.explained == kind for r in found)

    seconds = sorted(r.seconds[0] for r in results)
    return {
        "mutants": len(results),
        **{
            kind: sum(r.outcome == kind for r in results)
            for kind in ("crash", "refused", "broken", "timeout")
        },
        "equivalent": sum(r.equivalent for r in judged),
        "alarms": sum(r.equivalent and r.detected for r in judged),
        "not_equivalent": len(live),
        "detected": len(found),
        "placed": sum(r.placed for r in found),
        **{kind: share(kind) for kind in ("full", "part", "wrong", "none")},
        "caught_by": dict(Counter(sorted(r.caught_by for r in results if r.caught_by))),
        "median_s": seconds[len(seconds) // 2] if seconds else 0.0,
    }
