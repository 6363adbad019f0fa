"""Who takes part in a run: the subject, what gives noise, and the witnesses that were asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache

from jaxllama.checkpoint import Checkpoint
from parity.lockstep.participants import Participant
from parity.noise.chains import runs_chains
from parity.noise.operators import Numbers, SummedTaps
from parity.subjects.base import Subject
from parity.subjects.given import witness
from parity.subjects.jaxllama import JaxLlama
from parity.subjects.torch_arrays import to_numpy
from parity.subjects.torch_reference import TorchReference, Variant

EVERY = ("free", "isolated", "decode", "grad")
WHOLE = ("free", "decode", "grad")
WITNESS, VARIANT, INTERIOR = (frozenset({role}) for role in ("witness", "variant", "interior"))


def participants_for(
    checkpoint: Checkpoint,
    f64_reference: Subject,
    subjects: Mapping[str, Subject],
    references: Collection[str],
    modes: Collection[str],
) -> dict[str, list[Participant]]:
    """Return who takes part at each dtype.

    Noise is that of our own reference, eager and summed in another order. Float64 borrows
    float32's: those runs cost half as much, and are also what witnesses that work in float32
    inside are held to. On the reference's inputs, where rounding does not add up, one variant shows
    it, and in float64 a floor of a few units in the last place is enough. Where a subject does not
    name all taps, several operators run between two forced ones, and noise takes what a whole run
    does.

    Args:
        checkpoint: what all run.
        f64_reference: our reference in float64.
        subjects: what is judged, by dtype.
        references: the witnesses asked for, of `torch`, `hf`, `meta`.
        modes: what is to be run; a witness that runs in none of them is not loaded.
    """

    @cache
    def own(dtype: str, variant: Variant) -> TorchReference:
        return TorchReference(checkpoint, dtype=dtype, variant=variant)

    asked = WITNESS if "torch" in references else frozenset[str]()
    found = {}
    for lane, subject in subjects.items():
        participants = [Participant(subject, frozenset({"subject"}), EVERY)]
        chained = runs_chains(subject.absent)
        noisy = EVERY if chained else WHOLE
        if isinstance(subject, JaxLlama):
            compiled = Participant(
                subject.production(), frozenset({"production"}), ("free", "grad")
            )
            participants.append(compiled)
        if lane == "f64":
            participants += [
                Participant(own("f32", "reordered"), INTERIOR, noisy),
                Participant(own("f32", "eager"), INTERIOR, noisy),
                *([Participant(f64_reference, asked | {"gold"}, WHOLE)] if asked else []),
            ]
        else:
            participants += [
                Participant(own(lane, "reordered"), VARIANT, noisy),
                Participant(own(lane, "eager"), asked | VARIANT, EVERY),
            ]
        # transformers' gradients are its float32's, and Meta's model computes none.
        able = {"hf": WHOLE if lane == "f32" else WHOLE[:2], "meta": WHOLE[:2]}
        participants += [
            Participant(witness(name, checkpoint, lane), WITNESS, its)
            for name, its in able.items()
            if name in references and set(its) & set(modes)
        ]
        found[lane] = participants
    return found


def further_variants(
    checkpoint: Checkpoint, lane: str, present: Sequence[Participant]
) -> list[Participant]:
    """Return who is asked besides before an alarm, see `parity.lockstep.rerun`.

    Args:
        checkpoint: what all run.
        lane: dtype of the alarm.
        present: who takes part already; beside a subject of few names in isolated runs, too.
    """
    chained = any(runs_chains(one.subject.absent) for one in present if "subject" in one.roles)
    laned = TorchReference(checkpoint, dtype=lane, variant="laned")
    return [Participant(laned, VARIANT, EVERY if chained else WHOLE)]


def summed_taps(reference: TorchReference) -> SummedTaps:
    """Return how the reference's taps are summed, for noise that no machine changes."""
    c = reference.config
    numbers = Numbers(c.rms_norm_eps, reference.scale(), c.tie_word_embeddings)
    return SummedTaps(lambda name: to_numpy(reference.weight(name)), numbers)
