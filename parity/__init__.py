"""Proof that a JAX Llama computes what PyTorch computes, tensor by tensor.

The names below are the public interface; each is imported from its module when first used, so that
the core (`taps`, `comparison`, `locate`) needs numpy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.health.run import check_health
    from parity.quality.run import measure_quality
    from parity.report.outputs import write_report
    from parity.result import Result
    from parity.runner.assert_equal import assert_equal
    from parity.runner.capture import capture
    from parity.runner.compare_captures import compare
    from parity.runner.recheck import recheck
    from parity.runner.run import run

_HOME = {
    "Result": "result",
    "assert_equal": "runner.assert_equal",
    "capture": "runner.capture",
    "check_health": "health.run",
    "compare": "runner.compare_captures",
    "measure_quality": "quality.run",
    "recheck": "runner.recheck",
    "run": "runner.run",
    "write_report": "report.outputs",
}

__all__ = [
    "Result",
    "assert_equal",
    "capture",
    "check_health",
    "compare",
    "measure_quality",
    "recheck",
    "run",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'parity' has no attribute {name!r}")
    return getattr(importlib.import_module(f"parity.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
