"""Driving Meta's modules row by row, stage by stage, with or without its caches.

Shapes: B batch, T queries, S keys, K kv heads, H head dim; a row has t real queries and s real
keys of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parity.inputs import Inputs
from parity.subjects.base import Arrays, chunk_ranges, in_stage_order, no_stage_left
from parity.subjects.meta.model import MetaModel
from parity.subjects.meta.package import split_halves
from parity.subjects.torch.arrays import Recorder, to_numpy, to_torch
from parity.taps import AXES, split_name


@dataclass
class Row:
    """One row's part in a call.

    Attributes:
        index: in the batch.
        queries: its real columns, counted from the call's first column [t].
        keys: its real columns so far, the call's included [s].
        rotations: of its queries' positions [t H/2], complex.
        mask: 0 where a query sees a key, -inf elsewhere [t s].
        x: the residual stream [1 t D].
    """

    index: int
    queries: np.ndarray
    keys: np.ndarray
    rotations: Tensor
    mask: Tensor
    x: Tensor

    def cells(self, array: np.ndarray, axes: str) -> tuple[np.ndarray, Any]:
        """Return this row of a full array [B ...] of these axes, and the index of its cells."""
        queries = self.queries[:, None] if "S" in axes else self.queries
        columns = {"T": queries, "S": self.keys}
        return array[self.index], tuple(columns.get(axis, slice(None)) for axis in axes[1:])


class MetaRun:
    """One pass of a `MetaModel`; see `parity.subjects.base.Run`.

    Args:
        subject: whose model is run.
        inputs: the scenario.
        chunks: columns per call through the caches; None is one call from empty caches, which are
            dropped after each layer.
    """

    def __init__(
        self, subject: MetaModel, inputs: Inputs, chunks: Sequence[int] | None = None
    ) -> None:
        self._subject = subject
        self._inputs = inputs
        self._keep = chunks is not None
        whole = [(0, inputs.tokens.shape[1])]
        self._ranges = whole if chunks is None else chunk_ranges(inputs, chunks)
        self._caches: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        # At least two rows: the second shows the frequencies.
        self._table = subject.freqs_cis(max(2, int(inputs.positions.max()) + 1))
        self._rows: list[Row] = []
        self._columns = (0, 0)
        self._step = 0

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        """Compute the next stage for every row and return its taps."""
        layers = self._subject.config.num_hidden_layers
        call, stage = divmod(self._step, layers + 2)
        if call == len(self._ranges):
            raise no_stage_left()
        self._step += 1
        if stage == 0:
            self._columns = self._ranges[call]
            self._rows = [self._row(b) for b in range(len(self._inputs.tokens))]
        values = self._setup() if stage == 0 else {}
        for row in self._rows:
            recorder = Recorder(self._cut(force or {}, row))
            if row.queries.size:  # else the row has but pads in this call
                self._run(row, stage, recorder)
            self._show_cache(row, stage - 1, recorder)
            for name, part in recorder.values.items():
                self._put(values, name, part, row)
        return in_stage_order(values, stage, layers)

    def _row(self, b: int) -> Row:
        """Return row `b`'s part in the present call."""
        start, stop = self._columns
        queries = np.flatnonzero(self._inputs.valid[b, start:stop])
        keys = np.flatnonzero(self._inputs.valid[b, :stop])
        seen = to_torch(self._inputs.mask[b, start:stop, :stop][np.ix_(queries, keys)])
        mask = torch.zeros(seen.shape, dtype=self._subject.compute)
        positions = self._inputs.positions[b, start:stop][queries]
        rotations = self._table[to_torch(positions.astype(np.int64))]
        hidden = mask.masked_fill(~seen, -math.inf)
        return Row(b, queries, keys, rotations, hidden, torch.empty(0))

    def _setup(self) -> Arrays:
        start, stop = self._columns
        shape = (len(self._inputs.tokens), stop - start)
        values: Arrays = {
            # The second row is one step's rotation: its angles are the frequencies.
            "rope.inv_freq": to_numpy(self._table[1].angle()),
            "positions": np.zeros(shape, np.int32),
            "mask": np.zeros((*shape, stop), bool),
        }
        for row in self._rows:
            positions = self._inputs.positions[row.index, start:stop][row.queries]
            self._put(values, "positions", positions[None], row)
            self._put(values, "mask", to_numpy(row.mask == 0)[None], row)
        return values

    def _run(self, row: Row, stage: int, recorder: Recorder) -> None:
        """Run one row's stage as Meta's `Transformer.forward` does."""
        subject, model = self._subject, self._subject.model
        subject.present.watch = subject.watch(recorder)
        try:
            with torch.no_grad(), subject.present.watch:
                if stage == 0:
                    tokens = self._inputs.tokens[row.index, self._columns[0] + row.queries]
                    row.x = model.tok_embeddings(to_torch(tokens.astype(np.int64)[None]))
                elif stage <= len(model.layers):
                    self._layer(row, stage - 1)
                else:
                    recorder("logits", model.output(model.norm(row.x)).float())
        finally:
            subject.present.watch = None

    def _layer(self, row: Row, index: int) -> None:
        layer = self._subject.model.layers[index]
        past = len(row.keys) - len(row.queries)
        attention = layer.attention
        attention.cache_k, attention.cache_v = self._caches.get((index, row.index)) or self._empty(
            row
        )
        row.x = layer(row.x, past, row.rotations, row.mask)
        if self._keep:
            self._caches[index, row.index] = attention.cache_k, attention.cache_v

    def _show_cache(self, row: Row, index: int, recorder: Recorder) -> None:
        if (index, row.index) in self._caches:
            k, v = (held[:, : len(row.keys)] for held in self._caches[index, row.index])
            recorder(f"cache.{index}.k", split_halves(k))
            recorder(f"cache.{index}.v", v)

    def _empty(self, row: Row) -> tuple[Tensor, Tensor]:
        c = self._subject.config
        capacity = int(self._inputs.valid[row.index].sum())
        shape = (1, capacity, c.num_key_value_heads, c.head_dim)
        dtype = self._subject.compute
        return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)

    def _cut(self, force: Mapping[str, np.ndarray], row: Row) -> Arrays:
        """Return the row's cells of forced values."""
        cut = {}
        for name, array in force.items():
            axes = AXES[split_name(name)[0]]
            if "B" in axes:
                whole, cells = row.cells(array, axes)
                cut[name] = whole[cells][None]
        return cut

    def _put(self, values: Arrays, name: str, part: np.ndarray, row: Row) -> None:
        """Write the row's cells into the full array of a tap, whose other cells are zero."""
        axes = AXES[split_name(name)[0]]
        if name not in values:
            start, stop = self._columns
            sizes = {"B": len(self._inputs.tokens), "T": stop - start, "S": stop}
            shape = [sizes.get(axis, size) for axis, size in zip(axes, part.shape, strict=True)]
            values[name] = np.zeros(shape, part.dtype)
        whole, cells = row.cells(values[name], axes)
        whole[cells] = part[0]
