"""Every row of the embedding looked at: of a vocabulary a text uses few.

The head needs no such look: its logits are of all rows, whatever the text.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from parity.inputs import Inputs, batch_alike, join_inputs
from parity.lockstep.comparator import PassResult
from parity.lockstep.engine import Lockstep
from parity.lockstep.participants import ActiveRun, Role, chunk_views
from parity.lockstep.threads import ComparisonThreads
from parity.result import TapResult
from parity.subjects.base import CheckpointLike, Subject
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import split_name

SCENARIO, TAP = "vocabulary", "embed"
# Tokens of a batch at least, where a subject is asked for its first stage alone: in batches as
# small as a short prompt a vocabulary would take thousands of them.
_LEAST = 4096


@dataclass(frozen=True)
class Vocabulary:
    """What was found of the embedding's rows that no scenario holds.

    Attributes:
        found: a row of the tap `embed`, of the batch where it is farthest off; nothing where none
            was looked at.
        inputs: that batch; of a larger one, as many tokens as a scenario has, the worst among them.
        unseen: how many rows no run has looked at.
    """

    found: PassResult
    inputs: Inputs | None
    unseen: int


def compare_vocabulary(
    checkpoint: CheckpointLike, subject: Subject, scenarios: Sequence[Inputs]
) -> Vocabulary:
    """Compare the rows of the embedding that no scenario holds.

    A subject that takes values in runs stage by stage: its first stage is asked for all rows, some
    thousand at a time, and no other stage is run. One that does not runs whole; it is asked once,
    for as many rows as the smallest of its batches has tokens, the first and the last among them.

    Args:
        checkpoint: what both run.
        subject: of the widest dtype that is judged.
        scenarios: what it is run on beside; of each batch the shape, the mask and positions serve.
    """
    seen = np.unique(np.concatenate([one.tokens[one.valid] for one in scenarios]))
    unseen = np.setdiff1d(np.arange(checkpoint.config.vocab_size), seen)
    # What was captured is of the scenarios alone.
    if not unseen.size or TAP in subject.absent or hasattr(subject, "captured"):
        return Vocabulary(PassResult(), None, len(unseen))
    groups = sorted(batch_alike(scenarios), key=lambda parts: sum(i.valid.sum() for i in parts))
    like = join_inputs(groups[-1 if subject.can_force else 0])
    ids, wide = spread(unseen, int(like.valid.sum())), like
    if subject.can_force:
        ids, wide = unseen, widen(like, min(_LEAST, len(unseen)))
    looked = [(r, one) for one in batches(wide, ids) for r in _compare(checkpoint, subject, one)]
    if not looked:  # nothing under the name, of which other passes tell
        return Vocabulary(PassResult(), None, len(unseen))
    row, inputs = max(looked, key=_gravity)
    if wide is not like:
        # What is shown, and run whole for a cause, is as small as any scenario.
        (worst,) = batches(like, worst_first(checkpoint, subject, inputs)[: like.valid.sum()])
        again = [(one, worst) for one in _compare(checkpoint, subject, worst)]
        row, inputs = max([*again, (row, inputs)], key=lambda one: not one[0].passed)
    return Vocabulary(PassResult([row]), inputs, len(unseen) - len(ids))


def _gravity(looked: tuple[TapResult, Inputs]) -> tuple[bool, float]:
    row, _ = looked
    return not row.passed, row.rho


def worst_first(checkpoint: CheckpointLike, subject: Subject, inputs: Inputs) -> np.ndarray:
    """Return a batch's ids, those that a subject embeds worst first, one in four of the best.

    Causes tell wrong rows from right ones, so that both have to be there however many are wrong.
    """
    runs = (TorchReference(checkpoint).start(inputs), subject.start(inputs))
    true, shown = (np.asarray(run.step()[TAP], np.float64)[inputs.valid] for run in runs)
    with np.errstate(all="ignore"):
        error = np.nan_to_num(np.linalg.norm(shown - true, axis=-1), nan=np.inf)
    order = inputs.tokens[inputs.valid][np.argsort(-error, kind="stable")]
    worst, best = order.copy(), order[::-1]
    worst[3::4] = best[: len(worst[3::4])]
    return worst


def widen(like: Inputs, least: int) -> Inputs:
    """Return a batch with its rows repeated until it has so many real tokens."""
    return join_inputs([like] * -(-least // int(like.valid.sum())))


def spread(ids: np.ndarray, count: int) -> np.ndarray:
    """Return at most so many of some ids, the first and the last among them."""
    return ids[np.unique(np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int))]


def batches(like: Inputs, ids: np.ndarray) -> list[Inputs]:
    """Return batches like one, whose real tokens are some ids, each once; the last is filled up.

    Args:
        like: gives all but the tokens.
        ids: one or more.
    """
    size = int(like.valid.sum())
    found = []
    for start in range(0, len(ids), size):
        tokens = like.tokens.copy()
        tokens[like.valid] = np.resize(ids[start : start + size], size)
        found.append(replace(like, name=SCENARIO, tokens=tokens, notes=()))
    return found


def _compare(checkpoint: CheckpointLike, subject: Subject, inputs: Inputs) -> list[TapResult]:
    """Compare the first stage of a batch; an honest run of a narrow dtype shows its noise."""
    reference = TorchReference(checkpoint)
    runs = [ActiveRun(subject, frozenset({Role.SUBJECT}), "free", subject.start(inputs))]
    if subject.dtype != "f64":
        honest = TorchReference(checkpoint, dtype=subject.dtype)
        runs.append(ActiveRun(honest, frozenset({Role.NOISE}), "free", honest.start(inputs)))
    run = reference.start(inputs)
    truth = {name: value for name, value in run.step().items() if split_name(name)[0] == TAP}
    with ComparisonThreads() as pool:
        lockstep = Lockstep({subject.dtype: runs}, [inputs], pool)
        lockstep.stage(list(chunk_views(inputs, None)), truth, run)
    return lockstep.result().rows
