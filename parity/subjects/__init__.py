"""Implementations under comparison, each behind the interface of `base`.

The functions make subjects of implementations not written here; see README.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.subjects.adapters.conventions import auto_names
    from parity.subjects.adapters.create import from_callable, from_nnx, from_torch
    from parity.subjects.adapters.layouts import Tap
    from parity.subjects.adapters.names import Calls
    from parity.subjects.adapters.weights import load_into, weights_for
    from parity.subjects.select import FromCheckpoint
    from parity.subjects.takes import Takes
    from parity.subjects.traces import from_traces

_HOME = {
    "Calls": "adapters.names",
    "FromCheckpoint": "select",
    "Takes": "takes",
    "Tap": "adapters.layouts",
    "auto_names": "adapters.conventions",
    "from_callable": "adapters.create",
    "from_nnx": "adapters.create",
    "from_torch": "adapters.create",
    "from_traces": "traces",
    "load_into": "adapters.weights",
    "weights_for": "adapters.weights",
}

__all__ = [
    "Calls",
    "FromCheckpoint",
    "Takes",
    "Tap",
    "auto_names",
    "from_callable",
    "from_nnx",
    "from_torch",
    "from_traces",
    "load_into",
    "weights_for",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'parity.subjects' has no attribute {name!r}")
    return getattr(importlib.import_module(f"parity.subjects.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
