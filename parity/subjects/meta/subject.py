"""Meta's reference model as a subject."""

from __future__ import annotations

from collections.abc import Sequence

from parity.inputs import Inputs
from parity.subjects.base import Run
from parity.subjects.meta.model import MetaModel
from parity.subjects.meta.run import MetaRun


class MetaLlama(MetaModel):
    """Meta's model, as what can be run; its arguments are `MetaModel`'s."""

    can_force = True

    def start(self, inputs: Inputs) -> Run:
        """Begin a forward pass; see `parity.subjects.base.Subject`."""
        return MetaRun(self, inputs)

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> Run:
        """Feed the inputs through its own caches; see `parity.subjects.base.CachedSubject`."""
        return MetaRun(self, inputs, chunks)
