"""Which values can be looked at now: those that exist, and none that a transformation traces.

Inside `jit` an operation of JAX is traced even where all its arguments exist, closed over by the
function. What is checked there is therefore taken to the host first, and computed with NumPy.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np


def is_traced(*trees: Any) -> bool:
    """Return whether a transformation stands for any array in these pytrees."""
    leaves = jax.tree_util.tree_leaves(trees)
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def is_concrete(*trees: Any) -> bool:
    """Return whether every array in these pytrees has values here, on this host."""
    if is_traced(*trees):
        return False
    arrays = (leaf for leaf in jax.tree_util.tree_leaves(trees) if isinstance(leaf, jax.Array))
    return all(array.is_fully_addressable for array in arrays)


def host_values(*arrays: Any) -> tuple[np.ndarray, ...] | None:
    """Return the arrays as NumPy's, or None where any of them cannot be looked at."""
    return tuple(np.asarray(array) for array in arrays) if is_concrete(*arrays) else None


def computed() -> AbstractContextManager[None]:
    """Return a `with` in which operations on values give values, inside `jit` too.

    Outside of it nothing has to be done, and would cost: every constant of a program that is traced
    meanwhile would be compiled and computed by itself, forty of them for `generate`, a second.
    """
    inside = is_traced(jax.device_put(np.int32(0)))
    return jax.ensure_compile_time_eval() if inside else nullcontext()
