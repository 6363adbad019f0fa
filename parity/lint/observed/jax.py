"""Watching JAX's attentions: the arguments of `jax.nn.dot_product_attention`, and softmaxes.

The model runs without `jit`, so that what arrives are values; what `vmap` stands for is not known.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama.concrete import is_traced
from jaxllama.dtypes import short_name
from jaxllama.errors import InputError
from parity.lint.observed.call import AttentionCall, of_scores

_SIGNATURE = inspect.signature(jax.nn.dot_product_attention)


@contextmanager
def watch_jax(seen: Callable[[AttentionCall], None]) -> Iterator[None]:
    """Hand on every attention that runs while this is open, as `jax.nn`'s functions get it."""
    before = {name: getattr(jax.nn, name) for name in _READERS}
    inside = [False]  # what a watched function calls itself is not watched

    def exchanged(name: str) -> Any:
        @wraps(before[name])
        def watched(*args: Any, **kwargs: Any) -> Any:
            if inside[0]:
                return before[name](*args, **kwargs)
            call = _READERS[name](args, kwargs)
            if call is not None:
                seen(call)
            inside[0] = True
            try:
                return before[name](*args, **kwargs)
            finally:
                inside[0] = False

        return watched

    places = [(jax.nn, name, name) for name in _READERS] + _imported(before)
    watched = {name: exchanged(name) for name in _READERS}
    for module, name, what in places:
        setattr(module, name, watched[what])
    try:
        with jax.disable_jit():
            yield
    finally:
        for module, name, what in places:
            setattr(module, name, before[what])


def _imported(originals: Mapping[str, Any]) -> list[tuple[Any, str, str]]:
    """Return where other modules have the functions: `from jax.nn import softmax`."""
    found = []
    for name, module in list(sys.modules.items()):
        if module is None or name == "jax" or name.startswith("jax."):
            continue
        for key, value in list(vars(module).items()):
            found += [(module, key, what) for what, one in originals.items() if value is one]
    return found


def _softmax(args: Any, kwargs: Any) -> AttentionCall | None:
    scores = args[0] if args else kwargs["x"]
    axis = kwargs.get("axis", args[1] if len(args) > 1 else -1)
    if axis not in (-1, scores.ndim - 1) or scores.ndim < 3:
        return None
    values = _numpy(scores).astype(np.float32)
    if (where := kwargs.get("where")) is not None:
        values = np.where(np.broadcast_to(_numpy(where), values.shape), values, -np.inf)
    return of_scores("jax.nn.softmax", values, short_name(scores.dtype))


def _attention(args: Any, kwargs: Any) -> AttentionCall:
    given = _SIGNATURE.bind(*args, **kwargs)
    given.apply_defaults()
    said = given.arguments
    q, k = np.shape(said["query"]), np.shape(said["key"])
    t, s, heads = q[-3], k[-3], q[-2]
    seen = np.ones((1, 1, t, s), bool)
    if said["mask"] is not None:
        seen = seen & _four_axes(_numpy(said["mask"]))
    query, key = np.arange(t)[:, None], np.arange(s)[None, :]
    if causal := bool(said["is_causal"]):
        seen = seen & (key <= query)
    if (window := said["local_window_size"]) is not None:
        left, right = (window, window) if isinstance(window, int) else window
        seen = seen & (key >= query - left) & (key <= query + right)
    if said["key_value_seq_lengths"] is not None:
        seen = seen & (key < _numpy(said["key_value_seq_lengths"])[:, None, None, None])
    if said["query_seq_lengths"] is not None:
        seen = seen & (query < _numpy(said["query_seq_lengths"])[:, None, None, None])
    if said["bias"] is not None:
        bias = _four_axes(_numpy(said["bias"]))
        seen = np.where(seen, bias, jnp.finfo(bias.dtype).min.astype(bias.dtype))
    dtype = short_name(said["query"].dtype)
    return AttentionCall("jax.nn.dot_product_attention", seen, heads, dtype, causal)


_READERS: dict[str, Callable[[Any, Any], AttentionCall | None]] = {
    "softmax": _softmax,
    "dot_product_attention": _attention,
}


def _four_axes(array: np.ndarray) -> np.ndarray:
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def _numpy(array: Any) -> np.ndarray:
    """Return an array of the same dtype."""
    if is_traced(array):
        raise InputError(
            "an attention is inside vmap, grad, remat or a compiled call, where its mask has no"
            " values; give a function that runs the model without them"
        )
    return np.asarray(array)
