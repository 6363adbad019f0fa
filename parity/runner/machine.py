"""Which machine a run's figures are of: instruction sets, threads, libraries; in one line, too.

Rounding depends on the order in which a sum is taken, and that on all of these. The instruction set
is that which each library really uses, not the widest that the processor has: both can be held back
by settings. XLA's products are a matter of their own: YNNPACK, where it makes them, asks the
processor and heeds no setting of XLA's.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

# Environment variables that change how or where JAX and PyTorch compute.
SETTINGS = (
    "XLA_FLAGS",
    "JAX_DISABLE_JIT",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
)
# Instruction sets that sum in ever more lanes, the widest first, as LLVM and Linux spell them.
_LEVELS = {
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "avx": "AVX",
    "sse4.2": "SSE4.2",
    "sse4_2": "SSE4.2",
    "sve2": "SVE2",
    "sve": "SVE",
    "neon": "NEON",
    "asimd": "NEON",
}
_SIZE = 128  # of a product too large for XLA to unroll it
_FEATURES = re.compile(r"^(avx|sse|fma|amx|sve|neon|asimd|bf16|f16c)")


def describe() -> dict[str, Any]:
    """Return the machine as flat, plain data; `line` says it in one line.

    PyTorch is spoken of where it took part: a capture of the JAX side may run without it.
    """
    name, features = processor()
    found: dict[str, Any] = {
        "processor": name,
        "processor_instructions": _level(features),
        "processor_features": " ".join(sorted(f for f in features if _FEATURES.match(f))),
        "processors": _processors(),
    }
    backend = jax.default_backend()
    if backend == "cpu":
        used, products = compiler()
        found |= {
            "xla_instructions": _level(used) if used else "unknown",
            "xla_features": " ".join(sorted(f for f in used if _FEATURES.match(f))),
            "xla_products": products,
            "xla_threads": _processors(),  # its pools have one for each that it may run on
        }
    else:
        found["xla_instructions"] = jax.devices()[0].device_kind
    found["xla_devices"] = jax.device_count()
    if (torch := sys.modules.get("torch")) is not None:
        found |= {
            "torch_instructions": torch.backends.cpu.get_cpu_capability(),
            "torch_threads": torch.get_num_threads(),
            "torch_libraries": _libraries(torch.__config__.show()),
        }
    found["settings"] = " ".join(f"{n}={os.environ[n]}" for n in SETTINGS if os.environ.get(n))
    return {"line": line(found), **found}


def line(found: dict[str, Any]) -> str:
    """Say a description in one line."""
    parts = [f"{found['processor']}, {_many(found['processors'], 'processor')}"]
    xla = [f"XLA {found['xla_instructions']}"]
    if found.get("xla_products") == "YNNPACK":
        xla.append(f"products by YNNPACK on {found['processor_instructions']}")
    if "xla_threads" in found:
        xla.append(_many(found["xla_threads"], "thread"))
    if found["xla_devices"] != 1:
        xla.append(_many(found["xla_devices"], "device"))
    parts.append(", ".join(xla))
    if "torch_instructions" in found:
        torch = f"PyTorch {found['torch_instructions']}, {_many(found['torch_threads'], 'thread')}"
        parts.append(", ".join(filter(None, (torch, found["torch_libraries"]))))
    if found["settings"]:
        parts.append(found["settings"])
    return "; ".join(parts)


def processor() -> tuple[str, frozenset[str]]:
    """Return the processor's name and its features, as Linux lists them; elsewhere none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    features = frozenset(flags[0].split()) if flags else frozenset()
    return (names[0].strip() if names else platform.machine()), features


def compiler() -> tuple[frozenset[str], str]:
    """Return the instruction sets XLA compiles for on this CPU, and who makes its products.

    A compiled program carries its list with it, as LLVM spells it: `+avx2,-avx512f`. Settings are
    included. The second is `YNNPACK`, `XLA` for XLA's own code or Eigen, or empty if unknown.
    """
    square = jax.ShapeDtypeStruct((_SIZE, _SIZE), jnp.float32)
    try:
        compiled = jax.jit(jnp.matmul).lower(square, square).compile()
        executable: Any = compiled.runtime_executable()
        text = executable.serialize().decode("latin-1")
        products = "YNNPACK" if "__ynn_fusion" in (compiled.as_text() or "") else "XLA"
    except Exception:  # jaxlib promises none of this
        return frozenset(), ""
    return frozenset(re.findall(r"(?<=\+)[a-z][a-z0-9.-]+(?=[,\W])", text)), products


def _level(features: frozenset[str]) -> str:
    return next((name for feature, name in _LEVELS.items() if feature in features), "baseline")


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # which both libraries respect
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _libraries(config: str) -> str:
    """Return what PyTorch multiplies with, from its own description of how it was built."""
    versions = {"MKL": r"Math Kernel Library Version ([\d.]+)", "oneDNN": r"MKL-DNN v([\d.]+)"}
    found = {name: re.search(pattern, config) for name, pattern in versions.items()}
    said = [f"{name} {match[1]}" for name, match in found.items() if match]
    blas = re.search(r"BLAS_INFO=(\w+)", config)
    if blas and blas[1] != "mkl":
        said.insert(0, f"BLAS {blas[1]}")
    return ", ".join(said)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
