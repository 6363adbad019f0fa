"""What code is used on whose mutants are not explained but tabled by what caught them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from parity.result import Result
from parity.selftest.mutants.oracles import SAME, differs
from parity.selftest.mutants.reach import Line, is_reached, lines_run
from parity.selftest.mutants.rules import Mutant

# What comes out, by the name under which a report has it, or any other.
Outputs = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """Something that the code is used on.

    Attributes:
        name: for whom to tell it from others.
        show: what comes out of the code, without the checker.
        run: the checker on it; None if it is asked nothing about it.
        usual: whether every mutant is run on it. On the others it is where it shows on no usual
            one, for whoever has such a thing runs that.
    """

    name: str
    show: Callable[[], Outputs]
    run: Callable[[], Result] | None
    usual: bool = False


@dataclass(frozen=True)
class SeenForm:
    """What the unchanged code does with a form: what comes out, and the lines that run."""

    shown: Outputs
    lines: frozenset[Line]


@dataclass(frozen=True)
class OriginalForms:
    """What the unchanged code does.

    Attributes:
        seen: by the form's name.
        seconds: of a processor, that the usual runs take.
    """

    seen: Mapping[str, SeenForm]
    seconds: float

    def reaches(self, mutant: Mutant) -> bool:
        """Return whether a mutant's statement runs."""
        return any(is_reached(mutant, one.lines) for one in self.seen.values())


def original_forms(forms: Sequence[Form]) -> OriginalForms:
    """Run the unchanged code on forms.

    Raises:
        RuntimeError: the checker finds a fault in it.
    """
    seen, seconds = {}, 0.0
    for form in forms:
        jax.clear_caches()  # what was traced for one form does not run for the next
        with lines_run() as lines:
            began = time.process_time()
            result = form.run() if form.run is not None and form.usual else None
            seconds += time.process_time() - began
            shown = form.show()
        if result is not None and result.verdict != "equal":
            first = result.first_divergence
            where = "" if first is None else f", first {first.row.tap}"
            raise RuntimeError(f"the unchanged code is {result.verdict} on {form.name}{where}")
        seen[form.name] = SeenForm(shown, frozenset(lines))
    return OriginalForms(seen, seconds)


def differences(one: Outputs, other: Outputs) -> list[str]:
    """Return the names of what is not the same, in the order in which it comes out."""
    return [
        name
        for name in dict.fromkeys([*one, *other])
        if name not in one or name not in other or _unequal(one[name], other[name])
    ]


def _unequal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        same = SAME["f32" if one.dtype == np.float32 else "f64"]
        return one.dtype != other.dtype or differs(
            one.astype(np.float64), other.astype(np.float64), same
        )
    return type(one) is not type(other) or bool(one != other)


def said_by(what: Callable[[], Any]) -> Any:
    """Return what a call returns, or that it raises, which is a result like any other."""
    try:
        return what()
    except Exception as error:
        return f"raises {type(error).__name__}"
