"""The machine and the libraries that figures are of."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from jaxllama import compilation_cache

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "google-tunix")
# Features of processors by what decides how fast products are, the widest first of each.
_VECTORS = {
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "avx": "AVX",
    "sse4_2": "SSE4.2",
    "sve2": "SVE2",
    "sve": "SVE",
    "asimd": "NEON",
}
_BF16 = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512",
    "avx_ne_convert": "",
    "svebf16": "SVE",
    "bf16": "NEON",
}


def describe(threads: int) -> dict[str, Any]:
    """Return processor, instruction set, threads and versions; `line` says it in one line.

    Args:
        threads: that every variant runs on.
    """
    facts = dict(_fact(line) for line in compilation_cache.processor() if ":" in line)
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    vectors = next((name for flag, name in _VECTORS.items() if flag in flags), "unknown")
    bf16 = next((name for flag, name in _BF16.items() if name and flag in flags), None)
    name = facts.get("model name") or platform.processor() or platform.machine()
    versions = {package: _version(package) for package in PACKAGES}
    multiplies = f"bf16 products by {bf16}" if bf16 else "no bf16 products"
    return {
        "line": f"{name}, {vectors}, {multiplies}; {threads} threads; "
        + ", ".join(f"{p} {v}" for p, v in versions.items() if v),
        "processor": name,
        "instruction_set": vectors,
        "bf16_products": bf16,
        "processors": os.cpu_count(),
        "threads": threads,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "settings": compilation_cache.environment(),
    }


def available_threads() -> int:
    """Return how many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _fact(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
