"""Asking the process that compiles: it alone has a mesh's devices, and takes them with it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxllama.errors import InputError, argument
from jaxllama.plan.request import PlanRequest
from jaxllama.plan.topology import ENVIRONMENT, XLA_FLAGS, why_not
from jaxllama.sharding.mesh import Sizes

# A TPU's compiler takes a minute for a call of prefill, and some for the largest meshes.
PATIENCE_SECONDS = 900
CPU = "the CPU's"


@dataclass(frozen=True)
class MeasuredPrograms:
    """What a compiler says of the two programs, in bytes on each device.

    Attributes:
        arguments: of a step: weights, cache and tokens. 0 where the compiler has refused it.
        activations: what a call of prefill makes and gives back.
        temporaries: what a step of decoding makes and gives back.
        compiler: whose analysis.
        widened: whether it is of the program in float32, for one that is narrower: the CPU's
            compiler computes in float32 and holds weights and cache so too, which others do not.
        note: why it is not the device's own; empty if it is, or if that was not asked for.
    """

    arguments: int
    activations: int
    temporaries: int
    compiler: str
    widened: bool
    note: str = ""


def measure(request: PlanRequest, sizes: Sizes) -> MeasuredPrograms:
    """Compile a request's programs for a mesh.

    Args:
        request: what is planned.
        sizes: devices along each axis.

    Raises:
        InputError: the device's own compiler is asked for and not there, or compiling fails.
    """
    device, note = request.device, ""
    if device is not None and request.compiler != "cpu":
        reason = why_not(device, math.prod(sizes.values()))
        if reason is None:
            try:
                found = _ask(question(request, sizes, own=True), sizes)
            except _CompilerLostError as error:
                reason = str(error)
            else:
                return MeasuredPrograms(**found, compiler=f"{device.name}'s own", widened=False)
        if request.compiler == "device":
            raise InputError(f"{argument('compiler', 'device')}: {reason}")
        note = reason
    asked = question(request, sizes, own=False)
    try:
        found = _ask(asked, sizes)
    except _CompilerLostError as error:
        raise InputError(f"plan: the programs were not compiled: {error}") from error
    widened = min(request.dtype.itemsize, request.cache_dtype.itemsize) < 4
    return MeasuredPrograms(**found, compiler=CPU, widened=widened, note=note)


def question(request: PlanRequest, sizes: Sizes, *, own: bool) -> dict[str, Any]:
    """Return what the process is asked, in JSON's types.

    Args:
        request: what is planned.
        sizes: devices along each axis.
        own: whether the device's own compiler is asked.
    """
    wide = np.dtype(np.float32).name
    quant = None if request.quant is None else request.quant.name
    return {
        "config": request.config.to_hf(),
        "mesh": sizes,
        "batch": request.batch,
        "context": request.context,
        "chunk": request.chunk,
        "dtype": request.dtype.name if own else wide,
        "cache_dtype": request.cache_dtype.name if own else wide,
        # The CPU's compiler would widen all layers' weights at once.
        "quant": quant if own else None,
        "device": None if request.device is None else request.device.name,
        "own": own,
    }


class _CompilerLostError(Exception):
    """The process has not answered; the message says why."""


def _ask(asked: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    paths = [path or os.getcwd() for path in sys.path]
    program = (
        f"import sys; sys.path[:] = {paths!r}; import runpy; "
        "runpy.run_module('jaxllama.plan.worker', run_name='__main__')"
    )
    count = math.prod(sizes.values())
    kept = {name: v for name, v in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment = kept | {
        **ENVIRONMENT,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1" if asked["own"] else str(count),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {XLA_FLAGS}".strip(),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(asked),
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise _CompilerLostError(f"no answer after {PATIENCE_SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise _CompilerLostError(lines[-1][:300])
    return json.loads(done.stdout.strip().splitlines()[-1])
