"""Several processes that run one model, each with devices of its own, by `jax.distributed`.

JAX finds the others where Slurm, Open MPI, Cloud TPU or Kubernetes has started them. What is added
here are limits of time, and words: where one process is lost, JAX ends the others from a thread of
its own, or an operation between them fails, and neither says what to do.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # the client: JAX hands it out nowhere else
from jax.experimental import multihost_utils

from jaxllama.command_line.printable import spell_out
from jaxllama.errors import InputError, argument

# A process that has not been heard for so long is lost. JAX asks half as often.
HEARTBEAT_SECONDS = 20
# Until all have come, and until all have left.
MEETING_SECONDS, LEAVING_SECONDS = 60, 20
# Until others have come to the same error.
OWN_ERROR_SECONDS = 5
# For one that is heard and has more to do: to write its part of a model, or a trace.
WAITING_SECONDS = 3600
# That of other failures which are nobody's input.
EXIT_CODE = 4

_STDERR = 2
_ADDRESS = re.compile(r"(?P<place>[^\s,]+:\d{1,5}),(?P<index>\d{1,6})/(?P<count>\d{1,6})")
# What JAX says where another process does not answer.
_SIGNS = re.compile(r"gloo|UNAVAILABLE|DEADLINE_EXCEEDED|coordination|NCCL", re.IGNORECASE)
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_state: dict[str, Any] = {"line": "", "ending": threading.Lock(), "handler": None}


@contextmanager
def several_hosts(given: str = "auto") -> Iterator[None]:
    """Join the other processes of a run, and leave them at the end.

    Inside, `jax.devices()` are those of all processes, and a mesh is made of all of them. Every
    process has to make the same calls. Where another process is lost, this one ends within
    a minute: with one line on standard error and exit code 4.

    Args:
        given: `auto`, by what started the processes; or `HOST:PORT,INDEX/COUNT`, the first
            process's address and which of how many this one is, from 0.

    Raises:
        InputError: nothing is known of other processes, or what is given is no address.
    """
    arguments = _arguments(given)
    _watch(given)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=MEETING_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=LEAVING_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        _watch_no_more()
        raise InputError(_unmet(given, error)) from error
    _state["line"] = (
        f"process {jax.process_index()} of {jax.process_count()}: another process of this run is "
        "lost: it was killed, its machine or network failed, or it ended by an error of its own, "
        "which its output tells; start all processes again, from the last checkpoint that was "
        "finished"
    )
    try:
        yield
        meet("the end")
    except Exception as error:
        if jax.process_count() > 1 and (loss := _loss(error)):
            if "--debug" in sys.argv:
                traceback.print_exception(error)
            _end(f" (JAX: {' '.join(loss.split())[:200]})")
        if not isinstance(error, jax.errors.JaxRuntimeError):
            atexit.register(_leave, getattr(error, "exit_code", EXIT_CODE))
        raise
    jax.distributed.shutdown()
    _watch_no_more()


def meet(what: str, seconds: int = WAITING_SECONDS) -> None:
    """Wait until all processes are here.

    Args:
        what: the place has to be called, alike in all of them; each is met at once.
        seconds: at most.

    Raises:
        JaxRuntimeError: one does not come; inside `several_hosts` it ends the process.
    """
    client = global_state.client
    if client is None:
        return
    try:
        client.wait_at_barrier(f"jaxllama: {what}", timeout_in_ms=1000 * seconds)
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error):
            _state["line"] = (
                f"process {jax.process_index()} of {jax.process_count()}: not all processes have "
                f"come to {what} within {seconds} s; start all of them again"
            )
        raise


def _loss(error: BaseException | None) -> str:
    """Return what JAX said of a lost process, empty if it did not; others may have raised by it."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) and _SIGNS.search(str(error)):
            return str(error)
        error = error.__cause__
    return ""


def is_first() -> bool:
    """Return whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def host_array(array: Any) -> np.ndarray:
    """Return an array's values, whichever process's devices hold them; all must ask at once."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _arguments(given: str) -> dict[str, Any]:
    if given == "auto":
        return {}
    found = _ADDRESS.fullmatch(given)
    if found is None or int(found["index"]) >= int(found["count"]):
        raise InputError(
            f"{argument('hosts', given)}: expected auto, or HOST:PORT,INDEX/COUNT, such as "
            "10.0.0.1:8476,0/2 and 10.0.0.1:8476,1/2"
        )
    return {
        "coordinator_address": found["place"],
        "process_id": int(found["index"]),
        "num_processes": int(found["count"]),
        "cluster_detection_method": "deactivate",
    }


def _unmet(given: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    remedy = "start all of them at once, each with its own INDEX"
    if "before any JAX" in said:
        return (
            f"{argument('hosts', given)}: something has been asked of JAX before; join the other "
            "processes first, in a process that has not begun"
        )
    if given == "auto":
        remedy = (
            "start it by Slurm, Open MPI, Cloud TPU or Kubernetes, or give HOST:PORT,INDEX/COUNT"
        )
    return f"{argument('hosts', given)}: the processes have not met ({said}); {remedy}"


def _watch(given: str) -> None:
    """Have the process say why it ends where JAX ends it.

    JAX calls `abort` in a thread of its own, where no handler of Python's is run in time.
    """
    _state["line"] = (
        f"--hosts {given}: the processes have not met within {MEETING_SECONDS} s; start all of "
        "them at once, each with its own INDEX and the address of the first"
    )
    if threading.current_thread() is threading.main_thread() and sys.platform == "linux":
        _state["handler"] = _Handler(lambda _: _end())  # kept: the system has its address alone
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, _Handler], ctypes.c_void_p
        libc.signal(signal.SIGABRT, _state["handler"])


def _watch_no_more() -> None:
    """Leave what ends the process from here on to the system."""
    if _state["handler"] is not None:
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        _state["handler"] = None


def _leave(code: int) -> None:
    """Leave after an error of this process's own, which has been told.

    JAX would wait until the others leave, too, and call it a loss if they do not. Where all have
    the same error they do; else this one ends, and the others are told by the heartbeat.

    Args:
        code: what to end with, unless Python has shown a traceback.
    """
    try:
        meet("an end by errors", seconds=OWN_ERROR_SECONDS)
    except jax.errors.JaxRuntimeError:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(1 if hasattr(sys, "last_value") else code)


def _end(known: str = "") -> None:
    """Say that another process is lost, and end: JAX cannot go on without it.

    Args:
        known: what else there is to say, in the same line.
    """
    if _state["ending"].acquire(blocking=False):
        # Not by a stream, whose lock a thread may hold that goes on no more.
        os.write(_STDERR, spell_out(f"jaxllama: {_state['line']}{known}\n").encode())
        os._exit(EXIT_CODE)
