"""Where the tokens of a row lie among the keys: side by side, in a cache, or around in a ring.

Shape letters: B batch, T queries, S keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxllama.errors import argument


@dataclass(frozen=True, eq=False)
class Slots:
    """The slots of one call's keys.

    Attributes:
        queries: T.
        keys: S.
        offset: slot of the first query's own key, where slots are written in order.
        past: tokens in the cache before this call, where that is known.
        capacity: slots of a static cache.
        positions: of a ring, the position of each slot's token, [B, S], -1 in slots never written.
        own_positions: positions of the queries, [B, T], where they are known.
    """

    queries: int
    keys: int
    offset: int
    past: int | None
    capacity: int | None
    positions: np.ndarray | None
    own_positions: np.ndarray | None

    @property
    def known(self) -> bool:
        """Whether it is known in which slots the tokens lie."""
        if self.positions is not None or self.capacity is None:
            return True
        if self.past is None:  # of a cache of so many slots, nobody knows how many are written
            return self.queries == self.keys
        return self.past + self.queries <= self.capacity  # beyond, it is written in a ring

    @cached_property
    def order(self) -> np.ndarray:
        """[B or 1, S]: what grows from a slot to the one that is written next."""
        return np.arange(self.keys)[None] if self.positions is None else self.positions

    @cached_property
    def own_order(self) -> np.ndarray:
        """[B or 1, T]: `order` of each query's own key."""
        if self.positions is None:
            return (self.offset + np.arange(self.queries))[None]
        if self.own_positions is not None:
            return self.own_positions
        if self.past is not None:
            return (self.past + np.arange(self.queries))[None]
        newest = self.positions.max(1, keepdims=True)
        return newest - self.queries + 1 + np.arange(self.queries)

    @cached_property
    def own(self) -> np.ndarray:
        """[B or 1, T, S] bool: each query's own key."""
        return self.order[:, None, :] == self.own_order[:, :, None]

    @cached_property
    def after(self) -> np.ndarray:
        """[B or 1, T, S] bool: keys that came later than the query's own."""
        return self.order[:, None, :] > self.own_order[:, :, None]

    @cached_property
    def written(self) -> np.ndarray:
        """[B or 1, S] bool: slots that hold a token once this call has written its own."""
        if self.positions is not None:
            return self.positions >= 0
        return (np.arange(self.keys) < self.offset + self.queries)[None]

    def misfits(self, *, queries: bool) -> list[str]:
        """Return what is wrong with a ring's positions, and with its `queries` if asked."""
        for row, held in enumerate(() if self.positions is None else self.positions):
            positions, count = np.unique(held[held >= 0], return_counts=True)
            if (count > 1).any():
                twice = positions[count.argmax()]
                said = argument("slot_positions")
                return [f"{said}: row {row} holds position {twice} in two slots"]
        lost = np.argwhere(~self.own.any(-1))
        if queries and len(lost):
            row, query = lost[0]
            return [
                f"{argument('slot_positions')}: row {row}, query {query}: position"
                f" {self.own_order[row, query]} is in no slot; give them as they are once this call"
                " has written its tokens"
            ]
        return []
