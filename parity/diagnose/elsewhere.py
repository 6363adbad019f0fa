"""An explanation held against the subject's other scenarios, and what tells explanations apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from jaxllama.config import LlamaConfig
from parity.diagnose.cause import Hypothesis
from parity.diagnose.compare_recording import compare_recording, evidence_elsewhere
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.probe_inputs import probe_inputs
from parity.diagnose.recording import MOST_BYTES, Recording, first_columns, record, truncated_to_fit
from parity.inputs import Inputs

# Of each other scenario.
MOST_COLUMNS = 64


@dataclass(frozen=True)
class Elsewhere:
    """The same subject on other scenarios.

    Attributes:
        recordings: of them: what explains the subject does so in all.
        probes: of what is made to tell explanations apart: a subject need not take such inputs, so
            that they only decide between explanations.
        usual_probes: those of them that are masked by rules that the run's scenarios have. What was
            read off single rows or columns has to hold there too: it may be an accident of these.
        shorter: half of what is diagnosed, `MOST_COLUMNS` at most: a number that goes with the
            length is no constant.
        before: what has been found to be wrong already.
    """

    recordings: Sequence[Recording] = ()
    probes: Sequence[Recording] = ()
    usual_probes: Sequence[Recording] = ()
    shorter: Sequence[Recording] = ()
    before: tuple[Hypothesis, ...] = ()

    def fails(self, hypothesis: Hypothesis, reference: MutatedReference) -> str:
        """Say where a wrong reference is none of the subject; empty if nowhere."""
        found = self._fails(self.recordings, hypothesis, reference)
        if not found and _is_of_places(hypothesis):
            found = self._fails(self.usual_probes, hypothesis, reference)
        if not found and _is_of_numbers(hypothesis):
            found = self._fails(self.shorter, hypothesis, reference)
        return found

    def doubts(self, hypothesis: Hypothesis, reference: MutatedReference) -> bool:
        """Return whether a wrong reference is none of the subject on what tells apart."""
        return bool(self._fails(self.probes, hypothesis, reference))

    def beside(self, evidence: Evidence) -> Evidence:
        """Return evidence with what the other scenarios show of its tap."""
        found = [*evidence.elsewhere]
        for recording in (*self.recordings, *self.probes):
            inputs = inputs_like(self.before, recording.inputs, recording.chunks)
            if inputs is not None:
                found += evidence_elsewhere(evidence, recording, inputs)
        return replace(evidence, elsewhere=tuple(found))

    def _fails(
        self, recordings: Sequence[Recording], hypothesis: Hypothesis, reference: MutatedReference
    ) -> str:
        for recording in recordings:
            name = recording.inputs.name
            inputs = inputs_like((*self.before, hypothesis), recording.inputs, recording.chunks)
            if inputs is None:
                return f"what was read off one scenario says nothing of {name}"
            if compare_recording(recording, reference, inputs).first is not None:
                return f"in {name} it does not"
        return ""


def _is_of_places(hypothesis: Hypothesis) -> bool:
    """Return whether edits hold in some rows or columns of a batch alone."""
    axes = (axis for change in hypothesis.changes for axis, _ in change.scope.axes)
    return not {*axes}.isdisjoint("BT")


def _is_of_numbers(hypothesis: Hypothesis) -> bool:
    """Return whether it is edits, some of which have a number that was solved for."""
    edited = bool(hypothesis.changes) and all(change.edits for change in hypothesis.changes)
    return edited and any(edit.template for change in hypothesis.changes for edit in change.edits)


def inputs_like(
    hypotheses: Sequence[Hypothesis], inputs: Inputs, chunks: Sequence[int] | None
) -> Inputs | None:
    """Return a scenario, wrong in the ways of all hypotheses; None where no rule says how.

    Args:
        hypotheses: in the order in which they were found.
        inputs: the scenario.
        chunks: sizes of the calls; None without a cache.
    """
    found: Inputs | None = inputs
    for hypothesis in hypotheses:
        if hypothesis.mask is None and hypothesis.positions is None:
            continue
        if hypothesis.rule is None or found is None:
            return None
        found = hypothesis.rule(found, chunks)
    return found


def record_elsewhere(
    recording: Recording,
    inputs: Sequence[Inputs],
    config: LlamaConfig,
    decode_chunks: Callable[[Inputs], list[int]],
) -> Elsewhere:
    """Record a subject on a run's other scenarios, and on what tells explanations apart.

    All of these together take no more memory than the recording of a scenario that is diagnosed.

    Args:
        recording: of the scenario that is diagnosed.
        inputs: all of the run's.
        config: of the model.
        decode_chunks: how a scenario is fed through a cache.
    """
    if recording.mode == "isolated":
        return Elsewhere()

    others = [one for one in inputs if one.name != recording.inputs.name]
    probes = probe_inputs(recording.inputs)
    share = MOST_BYTES // (len(others) + len(probes) + 1)  # and half of what is diagnosed

    def recorded(one: Inputs) -> Recording:
        cut = first_columns(one, min(one.tokens.shape[1], MOST_COLUMNS))
        cut = truncated_to_fit(cut, config, recording.subject.dtype, recording.layers, share)
        chunks = decode_chunks(cut) if recording.mode == "decode" else None
        return record(recording.subject, cut, chunks, recording.layers)

    def taken_of(asked: Sequence[Inputs]) -> Iterator[Recording]:
        for one in asked:
            try:
                yield recorded(one)
            except Exception:  # a subject need not take what the run did not ask of it
                continue

    taken = list(taken_of(probes))
    length = min(recording.inputs.tokens.shape[1] // 2, MOST_COLUMNS)
    half = replace(
        first_columns(recording.inputs, length), name=f"{recording.inputs.name} of {length} tokens"
    )
    shorter = list(taken_of([half] if half.valid.any() else []))
    rules = {(one.segments is None, one.window is None) for one in inputs}
    usual = [
        one for one in taken if (one.inputs.segments is None, one.inputs.window is None) in rules
    ]
    return Elsewhere([recorded(one) for one in others], taken, usual, shorter)
