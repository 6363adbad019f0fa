"""Where the model believes to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def running_on(platform: str) -> Iterator[None]:
    """Have the model take the ways that it takes where `platform` is JAX's backend.

    It asks JAX where it runs: blocks of attention, the order of a product's factors and whose
    memory a cache may take go by it.

    Args:
        platform: `cpu`, `gpu` or `tpu`.
    """
    asked = jax.default_backend
    jax.default_backend = lambda: platform
    try:
        yield
    finally:
        jax.default_backend = asked
