"""Weights and caches in fewer bits; see docs/quantisation.md."""

from jaxllama.quantisation.arrays import Int4Array, Int8Array, Quantised
from jaxllama.quantisation.choice import QuantScheme, checked_cache_dtype, checked_quant
from jaxllama.quantisation.sizes import cache_bytes, step_bytes, weights_bytes

__all__ = [
    "Int4Array",
    "Int8Array",
    "QuantScheme",
    "Quantised",
    "cache_bytes",
    "checked_cache_dtype",
    "checked_quant",
    "step_bytes",
    "weights_bytes",
]
