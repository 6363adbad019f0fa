"""Who takes part in a run: the subject, what gives noise, and the witnesses that were asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache

from jaxllama.errors import InputError, argument
from parity.lockstep.participants import Participant, Role
from parity.noise.chains import runs_chains
from parity.noise.operators import Numbers, SummedTaps
from parity.subjects.base import CheckpointLike, Subject
from parity.subjects.jaxllama.subject import JaxLlama
from parity.subjects.select import witness
from parity.subjects.torch.arrays import to_numpy
from parity.subjects.torch_reference.model import Variant
from parity.subjects.torch_reference.subject import TorchReference

EVERY = ("free", "isolated", "decode", "grad")
WHOLE = ("free", "decode", "grad")
WITNESS, NOISE, NOISE_F32 = (
    frozenset({role}) for role in (Role.WITNESS, Role.NOISE, Role.NOISE_F32)
)


def participants_for(
    checkpoint: CheckpointLike,
    f64_reference: Subject,
    subjects: Mapping[str, Subject],
    references: Collection[str],
    modes: Collection[str],
    own: Variants | None = None,
) -> dict[str, list[Participant]]:
    """Return who takes part at each dtype; `subjects` are what is judged, by dtype.

    See `other_participants` for the rest of the arguments.
    """
    # One for all: what takes part at several dtypes runs once.
    own = own_variants(checkpoint) if own is None else own
    return {
        lane: [
            *subject_participants(subject),
            *other_participants(
                checkpoint, f64_reference, lane, subject.absent, references, modes, own
            ),
        ]
        for lane, subject in subjects.items()
    }


Variants = Callable[[str, Variant], TorchReference]
MakeVariants = Callable[[CheckpointLike], Variants]


def own_variants(
    checkpoint: CheckpointLike, make: Callable[..., TorchReference] = TorchReference
) -> Variants:
    """Return what makes our reference of a dtype and a variant, each once.

    Args:
        checkpoint: what it runs.
        make: called with it and these two.
    """

    @cache
    def own(dtype: str, variant: Variant) -> TorchReference:
        return make(checkpoint, dtype=dtype, variant=variant)

    return own


def subject_participants(subject: Subject) -> list[Participant]:
    """Return what is judged: a subject, and the model as users run it where there is one."""
    found = [Participant(subject, frozenset({Role.SUBJECT}), EVERY)]
    if isinstance(subject, JaxLlama):
        whole = subject.production()
        found.append(Participant(whole, frozenset({Role.PRODUCTION}), ("free", "grad")))
    return found


def other_participants(
    checkpoint: CheckpointLike,
    f64_reference: Subject,
    lane: str,
    absent: frozenset[str],
    references: Collection[str],
    modes: Collection[str],
    own: Variants,
) -> list[Participant]:
    """Return who takes part beside a subject: what gives the noise, and the witnesses.

    Noise is that of our own reference, eager and summed in another order. Float64 borrows
    float32's: those runs cost half as much, and are also what witnesses that work in float32
    inside are held to. On the reference's inputs, where rounding does not add up, one variant shows
    it, and in float64 a floor of a few units in the last place is enough. Where a subject does not
    name all taps, several operators run between two forced ones, and noise takes what a whole run
    does.

    Args:
        checkpoint: what all run.
        f64_reference: our reference in float64.
        lane: the dtype under judgement.
        absent: kinds of taps that the subject does not show.
        references: the witnesses asked for, of `torch`, `hf`, `meta`.
        modes: what is to be run; a witness that runs in none of them is not loaded.
        own: makes our reference's variants; see `own_variants`.

    Raises:
        InputError: a witness that takes part in nothing.
    """
    asked = WITNESS if "torch" in references else frozenset[Role]()
    noisy = EVERY if runs_chains(absent) else WHOLE
    if lane == "f64":
        found = [
            Participant(own("f32", "reordered"), NOISE_F32, noisy),
            Participant(own("f32", "eager"), NOISE_F32, noisy),
            *([Participant(f64_reference, asked | {Role.REFERENCE}, WHOLE)] if asked else []),
        ]
    else:
        found = [
            Participant(own(lane, "reordered"), NOISE, noisy),
            Participant(own(lane, "eager"), asked | NOISE, EVERY),
        ]
    # transformers' gradients are its float32's, and Meta's model computes none.
    able = {"hf": WHOLE if lane == "f32" else WHOLE[:2], "meta": WHOLE[:2]}
    if unable := sorted({*references} - {*able, "torch"}):
        raise InputError(
            f"{argument('reference', ','.join(unable))}: takes part in nothing; give it its modes "
            "in parity.lockstep.setup.other_participants"
        )
    return [
        *found,
        *(
            Participant(witness(name, checkpoint, lane), WITNESS, its)
            for name, its in able.items()
            if name in references and set(its) & set(modes)
        ),
    ]


def further_variants(
    checkpoint: CheckpointLike, lane: str, present: Sequence[Participant]
) -> list[Participant]:
    """Return who is asked besides before an alarm, see `parity.lockstep.rerun`.

    Args:
        checkpoint: what all run.
        lane: dtype of the alarm.
        present: who takes part already; beside a subject of few names in isolated runs, too.
    """
    chained = any(runs_chains(one.subject.absent) for one in present if Role.SUBJECT in one.roles)
    laned = TorchReference(checkpoint, dtype=lane, variant="laned")
    return [Participant(laned, NOISE, EVERY if chained else WHOLE)]


def summed_taps(reference: TorchReference) -> SummedTaps:
    """Return how the reference's taps are summed, for noise that no machine changes."""
    c = reference.config
    numbers = Numbers(c.rms_norm_eps, reference.scale(), c.tie_word_embeddings)
    return SummedTaps(lambda name: to_numpy(reference.weight(name)), numbers)
