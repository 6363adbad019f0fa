"""A layer reads another layer's cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation, MutationSite
from parity.subjects.torch_reference.operands import LAYERS_BEFORE

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
    taps = ("keys", "values")
    for by in (1, -1):
        said = f"every layer writes to the cache of layer {by:+d}"
        yield Hypothesis(
            "cache-layer",
            said,
            tuple(Mutation(tap, partial(of_another, by)) for tap in taps),
            effective=f"layer {by:+d}",
            configured="its own",
        )
    layers = e.config.num_hidden_layers
    for group in range(2, layers + 1):
        whose = "all layers" if group == layers else f"every {group} layers"
        yield Hypothesis(
            "cache-layer",
            f"{whose} share one cache, which each writes over",
            tuple(Mutation(tap, partial(shared_by, group)) for tap in taps),
            effective=f"one cache for {whose}",
            configured="its own",
        )
    for source in range(min(layers, LAYERS_BEFORE)):
        yield Hypothesis(
            "cache-layer",
            f"the cache of layer {source} is read",
            tuple(Mutation(tap, partial(of_layer, source)) for tap in taps),
            effective=f"layer {source}",
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
    assert site.layer is not None
    return of_layer((site.layer - by) % site.reference.config.num_hidden_layers, site)


def of_layer(source: int, site: MutationSite) -> Tensor:
    """Return what a layer has written so far; nothing of a call in which it comes later."""
    assert site.held is not None
    found = torch.zeros_like(site.value)
    if source in site.held.written:
        made = site.held.written[source][("keys", "values").index(site.tap)]
        found[:, : made.shape[1]] = made
    return found


def shared_by(group: int, site: MutationSite) -> Tensor:
    """Return what the last layer that writes to the same cache has left of earlier calls."""
    assert site.held is not None and site.layer is not None
    last = (site.layer // group + 1) * group - 1
    last = min(last, site.reference.config.num_hidden_layers - 1)
    found = site.held.written[site.layer][("keys", "values").index(site.tap)].clone()
    if last in site.held.written:
        start = site.held.start
        made = site.held.written[last][("keys", "values").index(site.tap)]
        found[:, :start] = made[:, :start]
    return found
