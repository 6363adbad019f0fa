"""A weight of another layer is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation
from parity.taps import LAYER_MODULES

CAUSE = Cause(
    id="weight-neighbour",
    title="a weight of another layer is used",
    what=(
        "A tensor, or a whole layer's, comes from another layer; the shapes fit, so nothing "
        "complains."
    ),
    why=(
        "Layers are counted from 1, stacked in another order, or a name is built with the "
        "wrong index."
    ),
    sources=("maxtext#4974",),
    taps=(*LAYER_MODULES,),
    remedy="Read the layer's number from the tensor's name, and compare checksums after loading.",
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the other layers: for this tensor, for this layer, or for all, shifted."""
    assert e.layer is not None
    here, count, module = e.layer, e.config.num_hidden_layers, LAYER_MODULES[e.short][0]
    for other in range(count):
        if other == here:
            continue
        by = other - here
        facts: Facts = {"effective": f"layer {other}", "configured": f"layer {here}"}
        choices: dict[str, Source] = {
            f"{module} of layer {other} in layer {here}": only(here, other, module),
            f"layer {other} in the place of layer {here}": only(here, other, ""),
            f"every layer {by:+d}": lambda i, _, by=by: (i + by) % count,  # type: ignore[misc]
        }
        for said, source in choices.items():
            yield Hypothesis("weight-neighbour", said, (taken(source),), **facts)


# The layer that a weight is read from, given its own layer and module.
Source = Callable[[int, str], int]


def only(layer: int, other: int, module: str) -> Source:
    """Return a source that is wrong in one layer, for one module or (empty) for all."""
    return lambda i, m: other if i == layer and module in ("", m) else i


def taken(source: Source) -> Mutation:
    """Return a change that reads weights from other layers."""

    def weight(name: str, read: Callable[[str], Tensor]) -> Tensor | None:
        parts = name.split(".")
        if parts[1] != "layers":
            return None
        other = source(int(parts[2]), ".".join(parts[3:-1]))
        return read(".".join([*parts[:2], str(other), *parts[3:]]))

    return Mutation(weight=weight)
