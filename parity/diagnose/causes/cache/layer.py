"""A layer reads another layer's cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite

CAUSE = Cause(
    id="cache-layer",
    title="a layer's cache is written by another layer, or by none",
    what=(
        "Keys and values go to the cache of another layer: what a layer reads is another one's, "
        "a call old or empty."
    ),
    why="Layers are counted from 1, or the index of a stacked cache is off by one.",
    sources=(),
    taps=("keys", "values"),
    remedy="Index the cache by the layer's own number; test with layers that differ.",
    rank=2,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose every layer writing to another, then this layer writing elsewhere."""
    for by in (1, -1):
        said = f"every layer writes to the cache of layer {by:+d}"
        taps = ("keys", "values")
        yield Hypothesis(
            "cache-layer",
            said,
            tuple(Mutation(tap, partial(of_another, by)) for tap in taps),
            effective=f"layer {by:+d}",
            configured="its own",
        )
    assert e.layer is not None
    yield Hypothesis(
        "cache-layer",
        f"layer {e.layer} writes to another layer's cache, its own stays empty",
        tuple(
            Mutation(tap, lambda site: torch.zeros_like(site.value), frozenset({e.layer}))
            for tap in ("keys", "values")
        ),
        effective="no layer",
        configured=f"layer {e.layer}",
    )


def of_another(by: int, site: MutationSite) -> Tensor:
    """Return what the layer before has written so far; nothing where it comes later."""
    assert site.held is not None and site.layer is not None
    found = torch.zeros_like(site.value)
    source = (site.layer - by) % site.reference.config.num_hidden_layers
    if source in site.held.written:
        made = site.held.written[source][("keys", "values").index(site.tap)]
        found[:, : made.shape[1]] = made
    return found
