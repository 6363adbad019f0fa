"""A variant's process, from outside: asked one thing at a time, ended with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from jaxllama.compilation_cache import NO_CACHE

# Beyond these nothing is waited for: a compilation takes a minute or two, a run seconds.
PATIENCE_SECONDS = 600.0
_TICKS = os.sysconf("SC_CLK_TCK")


class PeerLostError(Exception):
    """A process has ended, or answers an error; the message says why."""


class PeerProcess:
    """A process that does what it is asked; the others are silent meanwhile.

    Args:
        threads: processors that it may run on.
        scratch: a directory for what libraries write.
    """

    def __init__(self, threads: int, scratch: Path) -> None:
        self.started = time.monotonic()
        self._errors: IO[bytes] = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115
        paths = [path or os.getcwd() for path in sys.path]
        program = f"import sys; sys.path[:] = {paths!r}; from jaxllama.bench.worker import main"
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{program}; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(threads, scratch),
            text=True,
            # Ctrl-C at a terminal is for the parent, which ends this group.
            start_new_session=True,
        )
        if hasattr(os, "sched_setaffinity"):
            processors = sorted(os.sched_getaffinity(0))[:threads]
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self._process.pid, processors)

    def ask(self, question: Mapping[str, Any], patience: float = PATIENCE_SECONDS) -> Any:
        """Return the answer.

        Raises:
            PeerLostError: the process has ended, says an error, or takes too long.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(self._process.stdout, selectors.EVENT_READ)
                if not selector.select(patience):
                    raise PeerLostError(f"no answer after {patience:g} s")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerLostError(self._last_words())
        found = json.loads(line)
        if "error" in found:
            raise PeerLostError(found["error"])
        return found

    def processor_seconds(self) -> float | None:
        """Return the processor's time that the process has used; None where that is not told."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            text = Path(f"/proc/{self._process.pid}/stat").read_text()
            user, system = text.rpartition(")")[2].split()[11:13]
            return (int(user) + int(system)) / _TICKS
        return None

    def end(self) -> None:
        """Kill the process and all of its group, and wait for it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _last_words(self) -> str:
        """Say how the process ended, with the last line that it has written."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        said = f": {lines[-1].strip()}" if lines else ""
        return f"its process ended (code {self._process.poll()}){said}"


def environment(threads: int, scratch: Path) -> dict[str, str]:
    """Return the variables of a process: as many threads, nothing compiled before, no network."""
    kept = {n: v for n, v in os.environ.items() if n != "JAX_COMPILATION_CACHE_DIR"}
    count = str(threads)
    return kept | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "NPROC": count,
        "JAX_PLATFORMS": "cpu",
        NO_CACHE: "1",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "HF_HUB_OFFLINE": "1",
    }


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yield a directory for what libraries write, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="jaxllama-bench-", ignore_cleanup_errors=True) as path:
        yield Path(path)
