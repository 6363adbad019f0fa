"""The forward passes of a run: on its own values, on the reference's, through caches; and the
probe.

The backward pass is in `gradients`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from parity.inputs import Inputs, batch_alike, decode_chunks, join_inputs
from parity.lockstep.comparator import PassResult
from parity.lockstep.engine import run_lockstep
from parity.lockstep.memory import release_freed_memory
from parity.lockstep.rerun import run_until_sure
from parity.lockstep.setup import further_variants, participants_for, summed_taps
from parity.lockstep.timing import Timer
from parity.noise import one_hot
from parity.subjects.base import CheckpointLike, Subject, require_decoding
from parity.subjects.torch_reference.subject import TorchReference

Chunks = Callable[[Inputs], list[int]]


def passes_of(modes: Collection[str]) -> list[tuple[tuple[str, ...], Chunks | None]]:
    """Return the passes one scenario takes: free and isolated together, decode by itself."""
    whole = tuple(mode for mode in modes if mode in ("free", "isolated"))
    passes: list[tuple[tuple[str, ...], Chunks | None]] = [(whole, None)] if whole else []
    if "decode" in modes:
        passes.append((("decode",), decode_chunks))
    return passes


def count_stages(modes: Collection[str], inputs: Sequence[Inputs], layers: int) -> int:
    """Return how many stages `compare_forward` takes, and so how often it tells its progress."""
    return sum(
        (layers + 2) * (1 if chunks is None else len(chunks(group[0])))
        for _, chunks in passes_of(modes)
        for group in batch_alike(inputs)
    )


def compare_forward(
    checkpoint: CheckpointLike,
    subjects: Mapping[str, Subject],
    references: Collection[str],
    modes: Collection[str],
    inputs: Sequence[Inputs],
    progress: Callable[[str], None],
    timer: Timer,
) -> list[PassResult]:
    """Compare the subjects' forward passes with the float64 reference's.

    Args:
        checkpoint: what all run.
        subjects: what is judged, by dtype.
        references: witnesses asked for.
        modes: of `free`, `isolated`, `decode`.
        inputs: the scenarios.
        progress: called with what is under way after every stage.
        timer: counts what it costs.

    Returns:
        One for each pass of each group of scenarios that are run as one batch, and that of the
        probe.

    Raises:
        InputError: a subject that offers no run through a cache.
    """
    if "decode" in modes:
        for subject in subjects.values():
            require_decoding(subject)
    f64_reference = TorchReference(checkpoint, dtype="f64")
    summed = summed_taps(f64_reference)
    participants = participants_for(checkpoint, f64_reference, subjects, references, modes)
    groups, found = batch_alike(inputs), []
    for group in groups:
        names = " ".join(one.name for one in group)
        for together, chunks in passes_of(modes):
            release_freed_memory()
            run = partial(
                run_lockstep,
                parts=group,
                reference=f64_reference,
                modes=together,
                layers=checkpoint.config.num_hidden_layers,
                chunks=None if chunks is None else chunks(group[0]),
                summed=summed,
                timer=timer,
                progress=partial(progress, f"{names} {together[-1]}"),
            )
            found.append(run_until_sure(run, participants, partial(further_variants, checkpoint)))
    misshapen = any(row.misshapen for one in found for row in one.rows)
    if one_hot.probes_products(modes, tuple(subjects)) and not misshapen:
        smallest = join_inputs(min(groups, key=lambda group: sum(i.tokens.size for i in group)))
        rows = one_hot.probe_products(subjects["f32"], smallest, summed, checkpoint.config)
        found.append(PassResult(rows))
    # With it go the float64 weights that the reference holds for decoding.
    del f64_reference, summed, participants
    gc.collect()
    release_freed_memory()
    return found
