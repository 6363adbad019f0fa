"""What a cause is, what it goes by, and what it proposes.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, H head dim, D model dim.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllama.config import LlamaConfig
from parity.inputs import Inputs
from parity.taps import CACHE_TAPS, GRAD_TAPS, SETUP_TAPS, split_name

if TYPE_CHECKING:
    from parity.causes.wrong import Change, WrongReference

Arrays = Mapping[str, np.ndarray]
# What a layer's cache holds, by short name.
HELD_TAPS = {"keys": "cache.k", "values": "cache.v"}


@dataclass(frozen=True)
class Cause:
    """One way to be wrong.

    Attributes:
        id: how selftests, reports and `parity explain` call it.
        title: a few words.
        what: what the faulty code does.
        why: how code comes to do it, and what it costs.
        sources: public reports of it.
        taps: short names of the taps it can show at first.
        remedy: what to change.
        reshapes: whether it gives taps another shape.
        rounding: whether it can be of one dtype's arithmetic alone, float64 being equal.
        rank: the lower, the earlier it is tried among those that explain the same tap.
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
        noise: how exactly the wrong operator can be repeated, relative; a hypothesis whose own
            rounding is as large as the difference cannot make it smaller.
        left: of a gradient, what of its error the hypothesis leaves, where the gradient tells; None
            for a guess, which only an experiment can judge and which comes after.
    """

    cause: str
    said: str
    changes: tuple[Change, ...] = ()
    effective: str = ""
    configured: str = ""
    mask: Any = None  # arrays; Any, so that keyword arguments of strings can be unpacked
    positions: Any = None
    noise: Any = 0.0
    left: Any = None


@dataclass(frozen=True)
class Evidence:
    """The first tap that differs, and everything the subject shows around it.

    Attributes:
        tap: its canonical name.
        flagged: setup taps that differ too.
        subject, truth: taps of that stage, by short name; the reference's are those of the
            reference as it is understood so far.
        setup, true_setup: taps of the embedding's stage of the same call.
        columns: which columns of the inputs the call holds.
        chunks: sizes of all calls; None without a cache.
        inputs: the scenario, as it is understood so far.
        observed_mask: what the subject's mask taps show over all calls [B T T]; None if absent.
        observed_positions: the same of its positions [B T].
        reference: as it is understood so far.
        lane: dtype of the subject's run.
        written: keys and values that the subject has made so far, by layer [B S K H].
        ask: runs the subject on other inputs and returns its head's taps, and its mask if it shows
            that; None where it cannot.
    """

    tap: str
    flagged: tuple[str, ...]
    subject: Arrays
    truth: Arrays
    setup: Arrays
    true_setup: Arrays
    columns: slice
    chunks: Sequence[int] | None
    inputs: Inputs
    observed_mask: np.ndarray | None
    observed_positions: np.ndarray | None
    reference: WrongReference
    lane: str
    written: Mapping[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    ask: Callable[[Inputs], Arrays] | None = None

    @cached_property
    def short(self) -> str:
        """The tap without its layer: `q_rope`; what a cache holds is `keys` and `values`.

        A gradient keeps its prefix: `grad.layers.q_rope`.
        """
        kind, _ = split_name(self.tap)
        if kind in CACHE_TAPS:
            return next(short for short, name in HELD_TAPS.items() if name == kind)
        return kind if kind in SETUP_TAPS else kind.removeprefix("layers.")

    @property
    def backward(self) -> bool:
        """Whether the tap is one of a backward pass."""
        return split_name(self.tap)[0] in GRAD_TAPS

    @property
    def layer(self) -> int | None:
        """Number of the layer, None outside of layers."""
        return split_name(self.tap)[1]

    @property
    def config(self) -> LlamaConfig:
        """What the reference goes by."""
        return self.reference.config

    @property
    def valid(self) -> np.ndarray:
        """Which of the call's tokens are real [B T]."""
        return self.inputs.valid[:, self.columns]

    @property
    def held(self) -> np.ndarray:
        """Which columns are real of those that the call attends to [B S]."""
        return self.inputs.valid[:, : self.columns.stop]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Columns of every call so far, this one included."""
        chunks = tuple(self.chunks or (self.columns.stop,))
        fed = zip(chunks, accumulate(chunks), strict=True)
        return tuple(size for size, stop in fed if stop <= self.columns.stop)

    @property
    def mask(self) -> np.ndarray:
        """What the call's queries are to see [B T S]."""
        return self.inputs.mask[:, self.columns, : self.columns.stop]

    @property
    def positions(self) -> np.ndarray:
        """Positions of the call's tokens [B T]."""
        return self.inputs.positions[:, self.columns]

    def real(self, name: str) -> np.ndarray:
        """Return the subject's rows of one tap at real tokens, in float64 [tokens ...]."""
        return np.asarray(self.subject[name], np.float64)[self.valid]

    def weight(self, name: str) -> np.ndarray:
        """Return one of the reference's weights in float64."""
        return np.asarray(self.reference.weight(name).double().numpy())


Propose = Callable[[Evidence], Iterator[Hypothesis]]


@dataclass(frozen=True)
class CauseFile:
    """A cause with the function of its file that looks for it."""

    cause: Cause
    propose: Propose


@cache
def catalogue() -> dict[str, CauseFile]:
    """Return every cause by id, from the files of this package that have one."""
    from parity import causes

    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(causes.__path__)):
        module = importlib.import_module(f"{causes.__name__}.{name}")
        if hasattr(module, "CAUSE"):
            found[module.CAUSE.id] = CauseFile(module.CAUSE, module.propose)
    return dict(sorted(found.items(), key=lambda item: (item[1].cause.rank, item[0])))
