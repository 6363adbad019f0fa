"""The forward passes of a run: on its own values, on the reference's, through caches; and the
probe.

The backward pass is in `gradients`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from parity.inputs import Inputs, batch_alike, decode_chunks, join_inputs
from parity.lockstep.comparator import PassResult
from parity.lockstep.engine import run_lockstep
from parity.lockstep.memory import collect, release_freed_memory
from parity.lockstep.rerun import run_until_sure
from parity.lockstep.setup import (
    MakeVariants,
    further_variants,
    own_variants,
    participants_for,
    summed_taps,
)
from parity.lockstep.timing import Timer
from parity.noise import one_hot
from parity.subjects.base import CheckpointLike, Subject, require_decoding


@dataclass(frozen=True)
class Pass:
    """What is run together.

    Attributes:
        parts: scenarios, as one batch.
        modes: `free` and `isolated`, or `decode` by itself.
        chunks: columns per call of a run through caches; None where all are given at once.
    """

    parts: Sequence[Inputs]
    modes: tuple[str, ...]
    chunks: Sequence[int] | None = None


def passes_of(
    modes: Collection[str], inputs: Sequence[Inputs], decoded: Collection[str]
) -> list[Pass]:
    """Return the passes of a run: free and isolated together, through caches by itself.

    Args:
        modes: of `free`, `isolated` and others.
        inputs: the scenarios.
        decoded: names of those that are run through caches.
    """
    whole = tuple(mode for mode in modes if mode in ("free", "isolated"))
    passes = []
    for group in batch_alike(inputs):
        if whole:
            passes.append(Pass(group, whole))
        if cached := [one for one in group if one.name in decoded]:
            passes.append(Pass(cached, ("decode",), decode_chunks(cached[0])))
    return passes


def count_stages(passes: Sequence[Pass], layers: int) -> int:
    """Return how many stages `compare_forward` takes, and so how often it tells its progress."""
    return sum((layers + 2) * len(one.chunks or [0]) for one in passes)


def compare_forward(
    checkpoint: CheckpointLike,
    subjects: Mapping[str, Subject],
    references: Collection[str],
    passes: Sequence[Pass],
    progress: Callable[[str], None],
    timer: Timer,
    variants: MakeVariants = own_variants,
) -> list[PassResult]:
    """Compare the subjects' forward passes with the float64 reference's.

    Args:
        checkpoint: what all run.
        subjects: what is judged, by dtype.
        references: witnesses asked for.
        passes: what is run, see `passes_of`.
        progress: called with what is under way after every stage.
        timer: counts what it costs.
        variants: returns what makes our reference and its variants.

    Returns:
        One for each pass, and that of the probe.

    Raises:
        InputError: a subject that offers no run through a cache.
    """
    modes = {mode for one in passes for mode in one.modes}
    if "decode" in modes:
        for subject in subjects.values():
            require_decoding(subject)
    own = variants(checkpoint)
    f64_reference = own("f64", "eager")
    summed = summed_taps(f64_reference)
    participants = participants_for(checkpoint, f64_reference, subjects, references, modes, own)
    found = []
    for one in passes:
        names = " ".join(part.name for part in one.parts)
        release_freed_memory()
        run = partial(
            run_lockstep,
            parts=one.parts,
            reference=f64_reference,
            modes=one.modes,
            layers=checkpoint.config.num_hidden_layers,
            chunks=one.chunks,
            summed=summed,
            timer=timer,
            progress=partial(progress, f"{names} {one.modes[-1]}"),
        )
        found.append(run_until_sure(run, participants, partial(further_variants, checkpoint)))
    misshapen = any(row.misshapen for record in found for row in record.rows)
    if one_hot.probes_products(modes, tuple(subjects)) and not misshapen:
        smallest = join_inputs(
            min((one.parts for one in passes), key=lambda parts: sum(i.tokens.size for i in parts))
        )
        rows = one_hot.probe_products(subjects["f32"], smallest, summed, checkpoint.config)
        found.append(PassResult(rows))
    # With it go the float64 weights that the reference holds for decoding.
    del f64_reference, summed, participants, own
    collect(8 * sum(math.prod(info.shape) for info in checkpoint.tensors.values()))
    return found
