"""Traces in the place of the implementation that they were taken of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxllama.errors import InputError
from parity.inputs import Inputs, join_inputs
from parity.subjects.base import Arrays, no_stage_left
from parity.taps import AXES, split_name
from parity.trace import Trace, read_capture


def from_traces(directory: str | Path) -> dict[str, TraceSubject]:
    """Return the subjects of a capture, by dtype, for `parity.run(subject=...)`.

    Raises:
        InputError: not a capture, a damaged one, or one of several subjects.
    """
    traces = [one for one in read_capture(directory) if one.info.role == "subject"]
    names = sorted({one.info.subject for one in traces})
    if len(names) != 1:
        raise InputError(f"{directory}: traces of {', '.join(names) or 'no subject'}, expected one")
    lanes = dict.fromkeys(one.info.dtype for one in traces)
    return {lane: TraceSubject([t for t in traces if t.info.dtype == lane]) for lane in lanes}


class TraceSubject:
    """What was captured of one subject at one dtype; see `parity.subjects.base.Subject`.

    Args:
        traces: its runs over several scenarios and modes.

    Attributes:
        captured: scenario and mode of each.
    """

    can_force = False

    def __init__(self, traces: Sequence[Trace]) -> None:
        info = traces[0].info
        self.name = info.subject
        self.dtype = info.dtype
        self.internal_dtype = info.internal_dtype
        self.absent = frozenset(info.absent)
        self._traces = {(one.info.scenario, one.info.mode): one for one in traces}
        self.captured = frozenset(self._traces)

    def forward_inputs(self) -> list[Inputs]:
        """Return what its forward passes were made from, a scenario each."""
        return [trace.inputs for (_, mode), trace in self._traces.items() if mode == "free"]

    @property
    def layers(self) -> int:
        """L of the model that was captured."""
        return next(iter(self._traces.values())).info.layers

    def start(self, inputs: Inputs) -> TraceRun:
        return TraceRun(self._find(inputs, "free"))

    def start_decode(self, inputs: Inputs, chunks: Sequence[int]) -> TraceRun:
        traces = self._find(inputs, "decode")
        for trace in traces:
            if trace.info.chunks != tuple(chunks):
                raise InputError(
                    f"{trace.path}: decoded in pieces of {trace.info.chunks}, not {tuple(chunks)}"
                )
        return TraceRun(traces)

    def _find(self, inputs: Inputs, mode: str) -> list[Trace]:
        """Return the traces of the scenarios that a batch joins."""
        names = inputs.name.split("+")
        missing = [name for name in names if (name, mode) not in self._traces]
        if missing:
            held = ", ".join(f"{name} {mode}" for name, mode in self._traces)
            raise InputError(
                f"{self.name} {self.dtype}: nothing captured of {mode} runs of scenario "
                f"{', '.join(missing)}; only of {held}"
            )
        traces = [self._traces[name, mode] for name in names]
        if join_inputs([trace.inputs for trace in traces]).digest() != inputs.digest():
            raise InputError(
                f"{', '.join(str(trace.path) for trace in traces)}: made from other inputs than "
                "asked for; give the same prompt and length"
            )
        return traces


class TraceRun:
    """The stages of some traces, read one at a time, their rows one after another."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        self._stages = zip(*traces, strict=True)

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        parts = next(self._stages, None)
        if parts is None:
            raise no_stage_left()
        return {
            name: np.concatenate([part[name] for part in parts])
            if len(parts) > 1 and AXES.get(split_name(name)[0], "").startswith("B")
            else value
            for name, value in parts[0].items()
        }
