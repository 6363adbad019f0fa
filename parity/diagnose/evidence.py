"""What is known of a tap where a subject and the reference part.

Shapes: B batch, T queries, S keys, N query heads, K kv heads, H head dim, D model dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from jaxllama.config import LlamaConfig
from parity.inputs import Inputs
from parity.subjects.base import ReadArrays
from parity.taps import CACHE_TAPS, GRAD_TAPS, HEAD_TAPS, LAYER_TAPS, SETUP_TAPS, split_name

if TYPE_CHECKING:
    from parity.diagnose.edits.trial import OperatorTrial
    from parity.diagnose.mutated_reference import MutatedReference


# What a layer's cache holds, by short name.
HELD_TAPS = {"keys": "cache.k", "values": "cache.v"}


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
        enough: what the tap's error may be and be called noise, relative.
        elsewhere: the same tap in other scenarios and calls, whether it is wrong there or not; of
            some of them the subject need not know (see `parity.diagnose.probe_inputs`).
        seconds: of this thread's processor, after which no larger sets of edits are tried.
    """

    tap: str
    flagged: tuple[str, ...]
    subject: ReadArrays
    truth: ReadArrays
    setup: ReadArrays
    true_setup: ReadArrays
    columns: slice
    chunks: Sequence[int] | None
    inputs: Inputs
    observed_mask: np.ndarray | None
    observed_positions: np.ndarray | None
    reference: MutatedReference
    lane: str
    written: Mapping[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    ask: Callable[[Inputs], ReadArrays] | None = None
    enough: float = 0.0
    elsewhere: tuple[Evidence, ...] = ()
    seconds: float = 20.0

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

    @cached_property
    def trial(self) -> OperatorTrial | None:
        """The tap's operator, on which edits are tried; None if it has no program."""
        from parity.diagnose.edits.trial import operator_trial

        return operator_trial(self)

    @property
    def masked(self) -> bool:
        """Whether the tap is computed of what queries see."""
        later = tuple(LAYER_TAPS)[tuple(LAYER_TAPS).index("attn_probs") :]
        return self.short in (*later, *HEAD_TAPS)

    @cached_property
    def sight(self) -> OperatorTrial | None:
        """The program of the call's mask, and what is seen; None where nothing tells."""
        from parity.diagnose.edits.trial import mask_trial

        return mask_trial(self)

    def real(self, name: str) -> np.ndarray:
        """Return the subject's rows of one tap at real tokens, in float64 [tokens ...]."""
        return np.asarray(self.subject[name], np.float64)[self.valid]

    def weight(self, name: str) -> np.ndarray:
        """Return one of the reference's weights in float64."""
        return np.asarray(self.reference.weight(name).double().numpy())
