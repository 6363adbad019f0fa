"""Weights that stay as they are, with factors of low rank beside them.

Shapes: any leading axes, then o output features, i input features; r the rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxllama.quantisation import Quantised
from jaxllama.sharding.rules import Names


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """W + scale B A, never multiplied out.

    Its gradients are of the factors: of W's size there is none, in no layer.

    Attributes:
        base: W.
        a: A.
        b: B.
        scale: a number, of each layer where they are stacked.

    Source: Hu et al. 2021 (arXiv 2106.09685).
    """

    base: Float[Array, "*L o i"] | Quantised
    a: Float[Array, "*L r i"]
    b: Float[Array, "*L o r"]
    scale: Float[Array, "*L"]

    @property
    def shape(self) -> tuple[int, ...]:
        """As of W."""
        return self.base.shape

    def __getitem__(self, index: Any) -> LowRank:
        return jax.tree.map(lambda part: part[index], self)

    def on_parts(self, function: Callable[[Any, Names], Any], names: Names) -> LowRank:
        """Apply a function to each array; see `jaxllama.sharding.parameters.InParts`."""
        *before, rows, columns = names
        return LowRank(
            function(self.base, names),
            function(self.a, (*before, None, columns)),
            function(self.b, (*before, rows, None)),
            self.scale,
        )
