"""Attention masks as rules over explicit tokens: combined with `&`, `|`, `~`, and lowered once.

    mask = (causal() & padding()).bind(queries, keys)
    print(mask)

True always means "the query sees the key".
"""

from jaxllama.masks.algebra import Mask
from jaxllama.masks.bound import BoundMask, EmptyRow
from jaxllama.masks.kernel import KernelArguments
from jaxllama.masks.specs import (
    causal,
    chunked,
    explicit,
    index,
    padding,
    predicate,
    prefix,
    segments,
    window,
)
from jaxllama.masks.tokens import Cells, Tokens

__all__ = [
    "BoundMask",
    "Cells",
    "EmptyRow",
    "KernelArguments",
    "Mask",
    "Tokens",
    "causal",
    "chunked",
    "explicit",
    "index",
    "padding",
    "predicate",
    "prefix",
    "segments",
    "window",
]
