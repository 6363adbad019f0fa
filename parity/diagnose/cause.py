"""What a cause is, what it goes by, and what it proposes.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, H head dim, D model dim.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from parity.diagnose.evidence import HELD_TAPS, Evidence

if TYPE_CHECKING:
    from parity.diagnose.edits.named import NamedEdits
    from parity.diagnose.mutations import Mutation
    from parity.inputs import Inputs

# The rank from which on causes are tried only where no other explains a tap.
LAST = 20


@dataclass(frozen=True)
class Cause:
    """One way to be wrong.

    Attributes:
        id: how selftests, reports and `parity explain` call it.
        title: a few words.
        what: what the faulty code does.
        why: how code comes to do it, and what it costs.
        sources: public reports of it.
        taps: short names of the taps it can show at first; a setup tap is evidence by itself,
            whatever else is shown.
        remedy: what to change.
        reshapes: whether it gives taps another shape.
        rounding: whether it can be of one dtype's arithmetic alone, float64 being equal.
        rank: the lower, the earlier it is tried among those that explain the same tap; from `LAST`
            on only where no other explains it.
    """

    id: str
    title: str
    what: str
    why: str
    sources: tuple[str, ...]
    taps: tuple[str, ...]
    remedy: str
    rank: int = 5
    reshapes: bool = False
    rounding: bool = False

    def page(self) -> str:
        """Return the cause's page, as Markdown."""
        sections = [
            f"# {self.id}: {self.title}",
            f"## What happens\n\n{self.what}",
            f"## Why\n\n{self.why}",
            f"## Where it shows first\n\n{', '.join(HELD_TAPS.get(tap, tap) for tap in self.taps)}",
            f"## What to do\n\n{self.remedy}",
        ]
        if self.sources:
            sections.append(f"## Seen in\n\n{', '.join(self.sources)}")
        return "\n\n".join(sections) + "\n"


class Facts(TypedDict, total=False):
    """Of a hypothesis: what the operator did, what the configuration asks for, how exactly."""

    effective: str
    configured: str
    noise: float
    left: float | None


InputsRule = Callable[["Inputs", Sequence[int] | None], "Inputs | None"]


@dataclass(frozen=True)
class Hypothesis:
    """A cause with its parameters, and the reference made wrong in that way.

    Attributes:
        cause: its id.
        said: what is wrong, with numbers: `theta=1e+06`.
        changes: to the reference's taps and weights.
        effective, configured: what the operator did, and what the configuration asks for.
        mask: what the queries see in the place of the scenario's mask [B T T].
        positions: in the place of the scenario's [B T].
        rule: makes another scenario, fed in calls of some sizes, wrong in the same way; None where
            mask or positions are one run's alone.
        noise: how exactly the wrong operator can be repeated, relative; a hypothesis whose own
            rounding is as large as the difference cannot make it smaller.
        left: what of the error the hypothesis leaves, where it has been tried already: of
            gradients, and of edits. None for a guess, which only an experiment can judge, and which
            comes after.
        layer: where alone its changes hold; None for everywhere that they are made.
        alike: what would explain the tap as well, on all inputs that were tried.
        parts: what it is made of, where that has names of its own: hypotheses without changes.
    """

    cause: str
    said: str
    changes: tuple[Mutation, ...] = ()
    effective: str = ""
    configured: str = ""
    mask: np.ndarray | None = None
    positions: np.ndarray | None = None
    rule: InputsRule | None = None
    noise: float = 0.0
    left: float | None = None
    layer: int | None = None
    alike: tuple[str, ...] = ()
    parts: tuple[Hypothesis, ...] = ()

    @property
    def words(self) -> str:
        """What is wrong, and where if that is one layer alone."""
        return self.said if self.layer is None else f"{self.said} in layer {self.layer}"


Propose = Callable[[Evidence], Iterator[Hypothesis]]


@dataclass(frozen=True)
class CauseFile:
    """What a cause's file has.

    Attributes:
        name: its module's.
        cause: the cause.
        edits: of an operator's program, that it is the name of.
        look: looks for what is no edit of one operator.
    """

    name: str
    cause: Cause
    edits: tuple[NamedEdits, ...] = ()
    look: Propose | None = None

    def propose(self, evidence: Evidence) -> Iterator[Hypothesis]:
        """Yield what the cause may be here."""
        from parity.diagnose.edits.hypotheses import named_edits

        here = evidence.short in self.cause.taps
        edits = [one for one in self.edits if here or one.of in evidence.flagged]
        yield from named_edits(evidence, self.cause.id, edits)
        if self.look is not None:
            yield from self.look(evidence)


@cache
def catalogue() -> dict[str, CauseFile]:
    """Return every cause by id, from the files of the families that have one."""
    from parity.diagnose import causes

    found = {}
    for file in pkgutil.walk_packages(causes.__path__, f"{causes.__name__}."):
        module = importlib.import_module(file.name)
        if hasattr(module, "CAUSE"):
            edits, look = getattr(module, "EDITS", ()), getattr(module, "propose", None)
            found[module.CAUSE.id] = CauseFile(file.name, module.CAUSE, edits, look)
    return dict(sorted(found.items(), key=lambda item: (item[1].cause.rank, item[0])))
