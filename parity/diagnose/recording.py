"""A subject's run kept whole, so that hypotheses cost no further runs of it.

Shapes: B batch, T queries, S keys, K kv heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxllama.config import LlamaConfig
from parity.diagnose.solve import offset_and_stride, rotation, solve_positions
from parity.inputs import Inputs
from parity.subjects.base import Arrays, Run, Subject, require_decoding, require_gradients
from parity.taps import split_name

# What is larger than this in bytes is looked at on fewer columns.
MOST_BYTES = 1_200_000_000
# Positions that are not shown are looked for up to this many times the largest right one.
MOST_TIMES = 2


@dataclass(frozen=True)
class Recording:
    """All stages of a subject's run, in order.

    Attributes:
        subject: whose; its name, dtype and declared absences count.
        inputs: the scenario, or its first columns.
        chunks: sizes of the calls; None without a cache.
        layers: L.
        stages: their taps.
        given: what each stage's operators were given in place of the subject's own values; None
            where it ran freely.
        backward: whether they are a backward pass's.
    """

    subject: Subject
    inputs: Inputs
    chunks: tuple[int, ...] | None
    layers: int
    stages: list[Arrays]
    given: list[Arrays] | None = None
    backward: bool = False

    @property
    def mode(self) -> str:
        """How it was run: `free`, `isolated`, `decode` or `grad`."""
        if self.backward:
            return "grad"
        if self.given is not None:
            return "isolated"
        return "free" if self.chunks is None else "decode"

    def begin(self, subject: Subject, inputs: Inputs) -> Run:
        """Start a run of the same kind."""
        if self.backward:
            return require_gradients(subject).start_grad(inputs)
        if self.given is not None:
            return ForcedRun(subject.start(inputs), self.given)
        if self.chunks is None:
            return subject.start(inputs)
        return require_decoding(subject).start_decode(inputs, self.chunks)

    def whole(self, name: str) -> np.ndarray | None:
        """Return a setup tap over all calls: positions [B T], mask [B T T]."""
        parts = [stage[name] for stage in self.stages[:: self.layers + 2] if name in stage]
        sizes = self.chunks or (self.inputs.tokens.shape[1],)
        if len(parts) < len(sizes) or any(
            part.shape[1] != size for part, size in zip(parts, sizes, strict=True)
        ):
            return None
        if name != "mask":
            return np.concatenate(parts, axis=1)
        columns = self.inputs.tokens.shape[1]
        wide = [np.pad(p, ((0, 0), (0, 0), (0, columns - p.shape[2]))) for p in parts]
        return np.concatenate(wide, axis=1)


def record(
    subject: Subject,
    inputs: Inputs,
    chunks: Sequence[int] | None,
    layers: int,
    reference: Subject | None = None,
) -> Recording:
    """Run a subject once and keep what it shows.

    Args:
        subject: whom.
        inputs: on what.
        chunks: sizes of the calls; None without a cache.
        layers: L.
        reference: whose values each of its operators is given; None lets it run freely.
    """
    if reference is not None:
        source, run = reference.start(inputs), subject.start(inputs)
        given = [_named(source.step(), subject) for _ in range(layers + 2)]
        shown = [_copied(run.step(truth)) for truth in given]
        return Recording(subject, inputs, None, layers, shown, given)
    if chunks is None:
        run, calls = subject.start(inputs), 1
    else:
        # The runner asks for decoding of subjects alone that can.
        run, calls = require_decoding(subject).start_decode(inputs, chunks), len(chunks)
    stages = [_copied(run.step()) for _ in range(calls * (layers + 2))]
    return Recording(subject, inputs, None if chunks is None else tuple(chunks), layers, stages)


def record_backward(subject: Subject, inputs: Inputs, layers: int) -> Recording:
    """Run a subject's backward pass once and keep what it shows."""
    run = require_gradients(subject).start_grad(inputs)
    stages = [_copied(run.step()) for _ in range(layers + 2)]
    return Recording(subject, inputs, None, layers, stages, backward=True)


def _named(stage: Arrays, subject: Subject) -> Arrays:
    """Leave out what the subject does not name, and so is not given."""
    return {n: value for n, value in stage.items() if split_name(n)[0] not in subject.absent}


def _copied(stage: Arrays) -> Arrays:
    return {name: np.array(value) for name, value in stage.items()}


def truncated_to_fit(
    inputs: Inputs, config: LlamaConfig, lane: str, layers: int, most_bytes: int = MOST_BYTES
) -> Inputs:
    """Return as many of the first columns as can be kept of a whole run."""
    c = config
    B, T = inputs.tokens.shape
    size = {"f64": 8, "f32": 4, "bf16": 2}[lane]
    heads = 3 * c.num_attention_heads + 4 * c.num_key_value_heads
    per_token = 7 * c.hidden_size + 3 * c.intermediate_size + heads * c.head_dim

    def needed(columns: int) -> int:
        maps = 2 * c.num_attention_heads * columns
        return B * columns * (layers * (per_token + maps) + c.vocab_size) * size

    columns = T
    while columns > 8 and needed(columns) > most_bytes:
        columns = columns * 3 // 4
    return first_columns(inputs, columns)


def first_columns(inputs: Inputs, columns: int) -> Inputs:
    """Return a scenario's first columns."""
    if columns == inputs.tokens.shape[1]:
        return inputs
    segments = None if inputs.segments is None else inputs.segments[:, :columns]
    return replace(
        inputs,
        tokens=inputs.tokens[:, :columns],
        positions=inputs.positions[:, :columns],
        valid=inputs.valid[:, :columns],
        mask=inputs.mask[:, :columns, :columns],
        segments=segments,
    )


class Replay:
    """A recording in the place of the subject it was taken of."""

    can_force = False

    def __init__(self, recording: Recording) -> None:
        self.name = recording.subject.name
        self.dtype = recording.subject.dtype
        self.absent = recording.subject.absent
        self.internal_dtype = recording.subject.internal_dtype
        self._stages = iter(recording.stages)

    def start(self, inputs: Inputs) -> Run:
        return self

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        return next(self._stages)


class ForcedRun:
    """A run whose operators are given the same values, stage by stage, whoever asks."""

    def __init__(self, run: Run, given: Sequence[Arrays]) -> None:
        self._run, self._given = run, iter(given)

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        return self._run.step(next(self._given))


def positions(recording: Recording, inputs: Inputs, table: np.ndarray | None) -> np.ndarray | None:
    """Return the positions [B T] that a subject's rotations tell, else those that it shows.

    What is shown may be what the model was given, and not what its rotation goes by. None at all,
    or a multiple of the right ones, is no other position then but another rotation.
    """
    shown = recording.whole("positions")
    if recording.mode in ("isolated", "grad"):
        return shown
    assert table is not None  # a forward pass shows it
    told = _positions_told(recording, inputs, table)
    if shown is None or told is None:
        return told if shown is None else shown
    got, right = told[inputs.valid], shown[inputs.valid]
    line = offset_and_stride(got, right)
    scaled = line is not None and line[1] not in (0, 1)
    return shown if scaled or not got.any() else told


def _positions_told(recording: Recording, inputs: Inputs, table: np.ndarray) -> np.ndarray | None:
    """Return the positions that the first layer's rotations tell; None if they tell of none."""
    layers, start, parts = recording.layers, 0, []
    highest = MOST_TIMES * int(inputs.positions.max()) + inputs.tokens.shape[1]
    for call, size in enumerate(recording.chunks or (inputs.tokens.shape[1],)):
        setup, taps = (recording.stages[call * (layers + 2) + i] for i in (0, 1))
        names = "layers.0.q_proj", "layers.0.q_rope"
        before, after = (np.asarray(taps.get(n, 0), np.float64) for n in names)
        if before.shape != after.shape or before.shape[1:2] != (size,):
            return None  # not shown, or not in the layout it should have
        turned = rotation(before, after)
        table = np.asarray(setup.get("rope.inv_freq", table), np.float64)
        valid = inputs.valid[:, start : start + size]
        found = None
        if turned.pairing == "half-split" and turned.turn.shape[-1:] == table.shape:
            found = solve_positions(turned.turn, table, valid, highest)
        if found is None:
            return None
        parts.append(found)
        start += size
    return np.concatenate(parts, axis=1)


def keys_values_until(recording: Recording, stage: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return the keys and values that the subject has made so far, by layer."""
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for i in range(recording.layers):
        shown = recording.stages[i + 1 : stage + 1 : recording.layers + 2]
        names = f"layers.{i}.k_rope", f"layers.{i}.v_proj"
        if shown and all(name in taps for taps in shown for name in names):
            k, v = (np.concatenate([taps[name] for taps in shown], axis=1) for name in names)
            found[i] = k, v
    return found


def head_taps(recording: Recording, inputs: Inputs) -> dict[str, np.ndarray]:
    """Return the taps of the subject's head on some inputs, and its mask."""
    run = recording.subject.start(inputs)
    before = run.step()
    shown = {"mask": before["mask"]} if "mask" in before else {}
    for _ in range(recording.layers):
        before = run.step()
    last = f"layers.{recording.layers - 1}.output"
    return shown | ({"output": before[last]} if last in before else {}) | _copied(run.step())
