"""Programs that are compiled in a hurry: they run once here, and compiling is most of the time."""

from __future__ import annotations

import os
import threading
from functools import wraps
from typing import Any

import jax
import jaxlib
from jax._src import compiler as of_jax
from jax._src.interpreters import mlir

# Kernels of loops by LLVM alone, without MLIR's passes before it, in one module: two thirds less.
_OPTIONS = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
# Another XLA may not know them.
_FIT = jaxlib.__version__.startswith("0.10.")
_as_users = of_jax.get_compile_options
_FLAGS = " ".join(f"--{name}={value}".lower() for name, value in _OPTIONS.items())
# Those of the process that started this one are none of the user's, if it was in a hurry.
_own_flags = os.environ.pop("XLA_FLAGS", "").replace(_FLAGS, "").strip()
_hurried = False  # JAX's own setting comes from the environment, in a process that a test starts


@wraps(_as_users)
def _in_a_hurry(*args: Any, **named: Any) -> Any:
    asked = named.pop("env_options_overrides", None) or {}
    return _as_users(*args, env_options_overrides=_OPTIONS | asked, **named)


# Programs that are lowered in one context: to make one takes as long as lowering a small program.
# What one has seen it keeps, constants too.
_IN_ONE_CONTEXT = 50
_make_context = mlir.make_ir_context
_thread = threading.local()


@wraps(_make_context)
def _context() -> Any:
    if mlir.ir.Context.current is not None:  # within another program, which is not to hold this one
        return _make_context()
    if getattr(_thread, "left", 0) == 0:
        _thread.context, _thread.left = _make_context(), _IN_ONE_CONTEXT
    _thread.left -= 1
    return _thread.context


def _set_flags(*flags: str) -> None:
    """Set those of processes that are started from here on; none if all are empty."""
    os.environ.pop("XLA_FLAGS", None)
    if said := " ".join(filter(None, flags)):
        os.environ["XLA_FLAGS"] = said


_set_flags(_own_flags)


def compile_in_a_hurry(wanted: bool) -> None:
    """Have XLA leave out what makes programs fast, or not, here and in processes started here.

    What one way has compiled does not serve the other.
    """
    global _hurried
    if wanted == _hurried == jax.config.read("jax_disable_most_optimizations"):
        return
    _hurried = wanted
    jax.config.update("jax_disable_most_optimizations", wanted)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(wanted)
    if _FIT:
        of_jax.get_compile_options = _in_a_hurry if wanted else _as_users
        mlir.make_ir_context = _context if wanted else _make_context
        jax.devices()  # after which this process does not look at the variable
        _set_flags(_own_flags, _FLAGS if wanted else "")
    jax.clear_caches()  # which do not tell the two kinds apart
