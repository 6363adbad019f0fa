"""One recorded run of a subject, compared with references made wrong in different ways.

Shapes: B batch, T queries, S keys.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError
from parity.causes.base import Evidence
from parity.causes.wrong import WrongReference
from parity.lockstep import Lockstep
from parity.parties import Party, chunk_views
from parity.result import TapRow
from parity.scenarios import Inputs
from parity.subjects.base import Arrays, CachedSubject, Run, Subject
from parity.taps import SETUP_TAPS, flow_key

# A run is kept whole, so that hypotheses cost no further runs of the subject. What is larger than
# this in bytes is looked at on fewer columns.
MOST_BYTES = 1_200_000_000
# A float64 softmax's rows add up to 1 to within this, in rows of a million keys.
ROW_SUM_NOISE = 1e-9


@dataclass(frozen=True)
class Recording:
    """All stages of a subject's run, in order.

    Attributes:
        subject: whose; its name, dtype and declared absences count.
        inputs: the scenario, or its first columns.
        chunks: sizes of the calls; None without a cache.
        layers: L.
        stages: their taps.
    """

    subject: Subject
    inputs: Inputs
    chunks: tuple[int, ...] | None
    layers: int
    stages: list[Arrays]

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
    subject: Subject, inputs: Inputs, chunks: Sequence[int] | None, layers: int
) -> Recording:
    """Run a subject once and keep what it shows."""
    if chunks is None:
        run, calls = subject.start(inputs), 1
    else:
        # The runner asks for decoding of subjects alone that can.
        run, calls = _decoding(subject).start_decode(inputs, chunks), len(chunks)
    stages = [
        {name: np.array(value) for name, value in run.step().items()}
        for _ in range(calls * (layers + 2))
    ]
    return Recording(subject, inputs, None if chunks is None else tuple(chunks), layers, stages)


def _decoding(subject: Subject) -> CachedSubject:
    if not hasattr(subject, "start_decode"):
        raise InputError(f"{subject.name} cannot decode")
    return cast(CachedSubject, subject)


def shortened(inputs: Inputs, config: LlamaConfig, lane: str, layers: int) -> Inputs:
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
    while columns > 8 and needed(columns) > MOST_BYTES:
        columns = columns * 3 // 4
    if columns == T:
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


@dataclass(frozen=True)
class Finding:
    """Where a recording leaves a reference.

    Attributes:
        rows: every tap judged, up to the stage in which they part.
        place: stage and tap where they part; None if they agree to the end.
        flagged: setup taps of that call that differ.
        evidence: what is known there, but for a setup tap's.
    """

    rows: list[TapRow]
    first: TapRow | None
    stage: int
    flagged: tuple[str, ...]
    evidence: Evidence | None

    @property
    def progress(self) -> tuple[float, tuple[int, int, float]]:
        """How far they agree: larger is farther."""
        if self.first is None:
            return float("inf"), (0, 0, 0.0)
        return float(self.stage), flow_key(self.first.tap)

    def error(self, tap: str, step: int) -> float:
        """Return the error of one tap; infinite if its shape or finiteness differs."""
        for row in self.rows:
            if (row.tap, row.step) == (tap, step):
                return row.error if not row.problems or row.error else float("inf")
        return float("nan")


def examine(recording: Recording, reference: WrongReference, inputs: Inputs) -> Finding:
    """Compare a recording with a reference stage by stage, as far as they agree.

    Args:
        recording: of the subject.
        reference: the truth to compare with, wrong or not, in float64.
        inputs: its scenario: of the same tokens, but masks and positions may be wrong too.
    """
    lane, chunks, layers = recording.subject.dtype, recording.chunks, recording.layers

    def start(subject: Subject) -> Run:
        if chunks is None:
            return subject.start(inputs)
        return _decoding(subject).start_decode(inputs, chunks)

    mode = "free" if chunks is None else "decode"
    honest = [reference.again(lane, "reordered")]
    honest += [reference.again(lane, "eager")] if lane != "f64" else []
    parties = [Party(Replay(recording), frozenset({"subject"}), mode, Replay(recording))]
    parties += [Party(one, frozenset({"variant"}), mode, start(one)) for one in honest]
    gold = start(reference)
    setup: Arrays = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lockstep = Lockstep(lane, [inputs], parties, pool)
        (judge,) = lockstep.judges
        stage = 0
        for chunk in chunk_views(inputs, chunks):
            for _ in range(layers + 2):
                truth = gold.step()
                setup = truth if "positions" in truth else setup
                before = len(judge.rows)
                shown = replace(chunk, mask=chunk.mask | _carrying(truth))
                lockstep.stage([shown], truth, gold)
                judge.rows[before:] = [_excused(row, truth) for row in judge.rows[before:]]
                failed = sorted(
                    (r for r in judge.rows[before:] if not r.passed and r.tap not in SETUP_TAPS),
                    key=lambda row: flow_key(row.tap),
                )
                if failed:
                    return _parted(
                        recording, reference, inputs, judge.rows, failed[0], stage, (truth, setup)
                    )
                stage += 1
    flagged = tuple(dict.fromkeys(row.tap for row in judge.rows if not row.passed))
    return Finding(judge.rows, None, stage, flagged, None)


def _excused(row: TapRow, truth: Arrays) -> TapRow:
    """Forgive weights that do not add up to 1 where those of the wrong reference do not either."""
    if not row.tap.endswith("attn_probs") or not row.problems:
        return row
    sums = truth[row.tap].sum(-1)
    if np.isfinite(sums).all() and np.minimum(abs(sums - 1), abs(sums)).max() < ROW_SUM_NOISE:
        return row
    kept = tuple(said for said in row.problems if not said.startswith("rows of weights"))
    return replace(row, problems=kept)


def _carrying(truth: Arrays) -> np.ndarray:
    """Return which keys carry weight for a query in any head [B T S]: a wrong mask's too."""
    for name, value in truth.items():
        if name.endswith("attn_probs"):
            return np.asarray((value > 0).any(axis=1))
    return np.zeros((), bool)


def _parted(
    recording: Recording,
    reference: WrongReference,
    inputs: Inputs,
    rows: list[TapRow],
    first: TapRow,
    stage: int,
    truths: tuple[Arrays, Arrays],
) -> Finding:
    truth, true_setup = truths
    call = stage // (recording.layers + 2)
    sizes = recording.chunks or (inputs.tokens.shape[1],)
    stop = sum(sizes[: call + 1])
    flagged = tuple(
        row.tap
        for row in rows
        if not row.passed and row.tap in SETUP_TAPS and row.step == first.step
    )
    evidence = Evidence(
        tap=first.tap,
        flagged=flagged,
        subject=_before(recording, stage) | _short(recording.stages[stage]),
        truth=_short(truth),
        setup=_short(recording.stages[call * (recording.layers + 2)]),
        true_setup=_short(true_setup),
        columns=slice(stop - sizes[call], stop),
        chunks=recording.chunks,
        inputs=inputs,
        observed_mask=recording.whole("mask"),
        observed_positions=recording.whole("positions"),
        reference=reference,
        lane=recording.subject.dtype,
    )
    return Finding(rows, first, stage, flagged, evidence)


def _before(recording: Recording, stage: int) -> dict[str, np.ndarray]:
    """Return what the head is given: the last layer's output, unless it shows its own."""
    if stage % (recording.layers + 2) != recording.layers + 1:
        return {}
    name = f"layers.{recording.layers - 1}.output"
    last = recording.stages[stage - 1]
    return {"output": last[name]} if name in last else {}


def _short(stage: Arrays) -> dict[str, np.ndarray]:
    """Name a stage's taps without their layer; a cache's are `keys` and `values`."""
    found = {}
    for name, value in stage.items():
        parts = name.split(".")
        if parts[0] == "cache":
            found[{"k": "keys", "v": "values"}[parts[2]]] = value
        else:
            found[parts[2] if parts[0] == "layers" else name] = value
    if "keys" not in found:
        found |= {
            new: found[old]
            for new, old in (("keys", "k_rope"), ("values", "v_proj"))
            if old in found
        }
    return found
