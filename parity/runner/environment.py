"""Where a run took place: machine, versions, devices, and the precision matmuls really have."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import jax

from parity.runner import machine
from parity.runner.precision import HIGHEST, effective_matmul_precision

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "torch",
    "transformers",
    "llama_models",
    "safetensors",
)


def describe(precision: str = HIGHEST) -> dict[str, Any]:
    """Return what a reader needs to know to compare a run with another, as plain data.

    Args:
        precision: of products, that the run has asked for.
    """
    device = jax.devices()[0]
    # Named, not left to the caller: runs are described from within one at "highest".
    with jax.default_matmul_precision("default"):
        default = effective_matmul_precision()
    with jax.default_matmul_precision("highest"):
        highest = effective_matmul_precision()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": machine.describe(),
        "cpu_count": os.cpu_count(),
        "versions": {name: _version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "x64": bool(jax.config.read("jax_enable_x64")),
        "matmul_precision": {
            "in_force": precision,
            "float32_at_highest": highest,
            "float32_at_default": default,
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
