"""Some logits are cut off."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import at_tap

CAUSE = Cause(
    id="logits-masked",
    title="some logits are cut off",
    what="Entries of the vocabulary are at -inf.",
    why="Rows that pad the vocabulary to a round size are masked, and real ones with them.",
    sources=(),
    taps=("logits",),
    remedy="Mask no entry that the tokenizer has.",
    rank=0,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose -inf where the subject has it in every row."""
    cut = np.flatnonzero(np.isneginf(e.real("logits")).all(axis=0))
    if not len(cut):
        return
    entries = torch.from_numpy(cut)
    said = f"{len(cut)} entries at -inf, from {cut[0]}"

    def masked(site: MutationSite) -> Tensor:
        return site.value.index_fill(-1, entries, -torch.inf)

    yield at_tap(e, "logits-masked", said, masked, effective=said, configured="every entry")
