"""Who takes part in a run: the subject, what gives noise, and the witnesses that were asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache

from jaxllama.checkpoint import Checkpoint
from parity.noise.chains import runs_chains
from parity.noise.operators import Numbers, SummedTaps
from parity.parties import Entry
from parity.subjects.base import Subject
from parity.subjects.given import witness
from parity.subjects.jaxllama import JaxLlama
from parity.subjects.torch_arrays import to_numpy
from parity.subjects.torch_reference import TorchReference, Variant

EVERY = ("free", "isolated", "decode", "grad")
WHOLE = ("free", "decode", "grad")
WITNESS, VARIANT, INTERIOR = (frozenset({role}) for role in ("witness", "variant", "interior"))


def lineup(
    checkpoint: Checkpoint,
    gold: Subject,
    subjects: Mapping[str, Subject],
    references: Collection[str],
    modes: Collection[str],
) -> dict[str, list[Entry]]:
    """Return who takes part at each dtype.

    Noise is that of our own reference, eager and summed in another order. Float64 borrows
    float32's: those runs cost half as much, and are also what witnesses that work in float32
    inside are held to. On the gold's inputs, where rounding does not add up, one variant shows it,
    and in float64 a floor of a few units in the last place is enough. Where a subject does not name
    all taps, several operators run between two forced ones, and noise takes what a whole run does.

    Args:
        checkpoint: what all run.
        gold: our reference in float64.
        subjects: what is judged, by dtype.
        references: the witnesses asked for, of `torch`, `hf`, `meta`.
        modes: what is to be run; a witness that runs in none of them is not loaded.
    """

    @cache
    def reference(dtype: str, variant: Variant) -> TorchReference:
        return TorchReference(checkpoint, dtype=dtype, variant=variant)

    asked = WITNESS if "torch" in references else frozenset[str]()
    found = {}
    for lane, subject in subjects.items():
        entries = [Entry(subject, frozenset({"subject"}), EVERY)]
        chained = runs_chains(subject.absent)
        noisy = EVERY if chained else WHOLE
        if isinstance(subject, JaxLlama):
            compiled = Entry(subject.production(), frozenset({"production"}), ("free", "grad"))
            entries.append(compiled)
        if lane == "f64":
            entries += [
                Entry(reference("f32", "reordered"), INTERIOR, noisy),
                Entry(reference("f32", "eager"), INTERIOR, noisy),
                *([Entry(gold, asked | {"gold"}, WHOLE)] if asked else []),
            ]
        else:
            entries += [
                Entry(reference(lane, "reordered"), VARIANT, noisy),
                Entry(reference(lane, "eager"), asked | VARIANT, EVERY),
            ]
        # transformers' gradients are its float32's, and Meta's model computes none.
        able = {"hf": WHOLE if lane == "f32" else WHOLE[:2], "meta": WHOLE[:2]}
        entries += [
            Entry(witness(name, checkpoint, lane), WITNESS, own)
            for name, own in able.items()
            if name in references and set(own) & set(modes)
        ]
        found[lane] = entries
    return found


def further_variants(checkpoint: Checkpoint, lane: str, present: Sequence[Entry]) -> list[Entry]:
    """Return who is asked besides before an alarm, see `parity.rerun`.

    Args:
        checkpoint: what all run.
        lane: dtype of the alarm.
        present: who takes part already; beside a subject of few names in isolated runs, too.
    """
    chained = any(runs_chains(one.subject.absent) for one in present if "subject" in one.roles)
    laned = TorchReference(checkpoint, dtype=lane, variant="laned")
    return [Entry(laned, VARIANT, EVERY if chained else WHOLE)]


def summed_taps(reference: TorchReference) -> SummedTaps:
    """Return how the reference's taps are summed, for noise that no machine changes."""
    c = reference.config
    numbers = Numbers(c.rms_norm_eps, reference.scale(), c.tie_word_embeddings)
    return SummedTaps(lambda name: to_numpy(reference.weight(name)), numbers)
