"""Judging a backward pass: the loss and its gradients against PyTorch's autograd.

The stages of a backward pass run from the head down; each is compared and forgotten, as those of
a forward pass are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from jaxllama.errors import InputError, argument
from parity.inputs import Inputs
from parity.lockstep.comparator import PassResult
from parity.lockstep.engine import run_lockstep
from parity.lockstep.rerun import run_until_sure
from parity.lockstep.setup import MakeVariants, further_variants, own_variants, participants_for
from parity.lockstep.timing import Timer
from parity.scenarios import DEFAULT_SCENARIOS
from parity.subjects.base import CheckpointLike, Subject, require_gradients
from parity.subjects.torch_reference.loss import successors

# Not bfloat16: training keeps gradients of what it accumulates in float32, and of how well single
# roundings go the forward pass tells.
DTYPES = ("f64", "f32")
# In place of the default scenarios, whose longest costs more to differentiate than all else is
# worth. It has rows of several documents, and one that ends in pads.
SCENARIOS = ("packed",)
MODE = ("grad",)


def scenarios_for(chosen: tuple[str, ...]) -> tuple[str, ...]:
    """Return the scenarios to differentiate where these were chosen for the forward passes."""
    return SCENARIOS if chosen == DEFAULT_SCENARIOS else chosen


def lanes_for(chosen: Sequence[str]) -> tuple[str, ...]:
    """Return the dtypes to differentiate in.

    Raises:
        InputError: none of the chosen ones.
    """
    lanes = tuple(lane for lane in DTYPES if lane in chosen)
    if not lanes:
        raise InputError(
            f"mode grad with {argument('dtypes', ','.join(chosen))}: gradients are judged in "
            f"{' and '.join(DTYPES)}; add one of them"
        )
    return lanes


def check_inputs(inputs: Sequence[Inputs]) -> None:
    """Refuse inputs whose loss would be a mean of nothing.

    Raises:
        InputError: no token of a scenario is followed by another.
    """
    for one in inputs:
        if not successors(one):
            raise InputError(
                f"mode grad, scenario {one.name}: no token is followed by another of its "
                "document, so there is no loss; give at least 2 tokens"
            )


def notes_for(dtypes: Sequence[str], references: Sequence[str]) -> list[str]:
    """Return what a report must say of what was not differentiated."""
    notes = []
    if "bf16" in dtypes:
        notes.append("gradients are judged in float64 and float32, not in bfloat16")
    if "hf" in references:
        notes.append("transformers' gradients are witnesses in float32 alone")
    if "meta" in references:
        notes.append("Meta's reference computes no gradients, and is no witness of them")
    return notes


def compare_gradients(
    checkpoint: CheckpointLike,
    subjects: Mapping[str, Subject],
    references: Collection[str],
    inputs: Sequence[Inputs],
    progress: Callable[[str], None] = lambda _: None,
    timer: Timer | None = None,
    variants: MakeVariants = own_variants,
) -> list[PassResult]:
    """Compare the subject's gradients with the float64 reference's, scenario by scenario.

    Args:
        checkpoint: what all run.
        subjects: what is judged, by dtype, of float64 and float32.
        references: witnesses asked for.
        inputs: the scenarios.
        progress: called with what is under way after every stage.
        timer: counts what it costs.
        variants: returns what makes our reference and its variants.

    Returns:
        A record for each scenario.

    Raises:
        InputError: the subject offers no gradients.
    """
    for subject in subjects.values():
        require_gradients(subject)
    layers = checkpoint.config.num_hidden_layers
    own = variants(checkpoint)
    f64_reference = own("f64", "eager")
    participants = participants_for(checkpoint, f64_reference, subjects, references, MODE, own)

    def compared(one: Inputs) -> PassResult:
        run = partial(
            run_lockstep,
            parts=[one],
            reference=f64_reference,
            modes=MODE,
            layers=layers,
            timer=timer,
            progress=lambda: progress(f"{one.name} grad"),
        )
        return run_until_sure(run, participants, partial(further_variants, checkpoint))

    return [compared(one) for one in inputs]
