"""The sandbox's process: started at the first question, and anew after a breach."""

from __future__ import annotations

import atexit
import json
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from jaxllama.files import limits

# Eight bytes of length stand before each question and answer.
_LENGTH = struct.Struct("<Q")
# Six bytes is the longest that JSON spells a character with.
_MOST_BYTES = 6 * limits.RENDERED_CHARACTERS + 1000


class SandboxProcess:
    """A process that answers one question at a time, from any thread.

    It ends with this one, however that ends: nothing is left to read.

    Args:
        seconds: of the processor's time, of each answer.
        nbytes: of memory, Python's own included.
    """

    def __init__(
        self, seconds: int = limits.SANDBOX_SECONDS, nbytes: int = limits.SANDBOX_BYTES
    ) -> None:
        self._seconds, self._nbytes = seconds, nbytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, action: str, source: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return a program's answer; see `jaxllama.sandbox.answers.answer`.

        Raises:
            OSError: no process can be started.
        """
        question = pickle.dumps((action, source, dict(variables)))
        with self._lock:
            try:
                return self._answer(question)
            except BaseException:  # Ctrl-C too: an answer that is still to come is nobody's
                self._end()
                raise

    def _answer(self, question: bytes) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = _started(self._seconds, self._nbytes)
        until = time.monotonic() + limits.SANDBOX_WAIT_SECONDS
        try:
            _write(_stream(self._process.stdin), _LENGTH.pack(len(question)) + question, until)
            output = _stream(self._process.stdout)
            (length,) = _LENGTH.unpack(_read(output, _LENGTH.size, until))
            found: dict[str, Any] = (
                json.loads(_read(output, length, until).decode("utf-8", "surrogatepass"))
                if length <= _MOST_BYTES
                else {"beyond": f"gives more than {limits.RENDERED_CHARACTERS} characters"}
            )
        except TimeoutError:
            self._end()
            return {"beyond": f"takes more than {limits.SANDBOX_WAIT_SECONDS} seconds"}
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return {"beyond": self._end_of(self._end())}
        if "beyond" in found:
            self._end()  # what it took is given back
        return found

    def _end(self) -> int | None:
        """Kill the process, if there is one, and wait for it; return how it had ended."""
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(subprocess.TimeoutExpired):
            # One that has closed its end is ending by itself.
            process.wait(0.5 if process.stdout and _is_closed(process.stdout) else 0)
        process.kill()
        code = process.wait()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                _stream(stream).close()
        return code

    def _end_of(self, code: int | None) -> str:
        """Say why the process is gone."""
        if code == -signal.SIGXCPU:
            return f"takes more than {self._seconds} seconds"
        if code in (-signal.SIGKILL, 1):  # the system's own limit on memory, or Python's
            return f"takes more than {self._nbytes >> 20} MB"
        return f"ends the process that runs it (code {code})"

    def end(self) -> None:
        """End the process; the next question starts another."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """Leave the process to the one that this was forked from."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):
                    _stream(stream).close()
            process.returncode = 0  # not ours to be waited for


def _started(seconds: int, nbytes: int) -> subprocess.Popen[bytes]:
    # Neither the directory that it is started in nor the user's settings say what is imported.
    root = str(Path(__file__).parents[2])
    paths = [root, *(path for path in sys.path if path)]
    program = f"import sys; sys.path[:] = {paths!r}; from jaxllama.sandbox.worker import main"
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", f"{program}; main({seconds}, {nbytes})"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,  # Ctrl-C at a terminal is for this process
    )


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _wait(stream: IO[bytes], event: int, until: float) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(stream, event)
        if not selector.select(max(0.0, until - time.monotonic())):
            raise TimeoutError


def _write(stream: IO[bytes], data: bytes, until: float) -> None:
    left = memoryview(data)
    os.set_blocking(stream.fileno(), False)
    while left:
        _wait(stream, selectors.EVENT_WRITE, until)
        with suppress(BlockingIOError):
            left = left[os.write(stream.fileno(), left) :]


def _read(stream: IO[bytes], count: int, until: float) -> bytes:
    data = bytearray()
    while len(data) < count:
        _wait(stream, selectors.EVENT_READ, until)
        if not (part := os.read(stream.fileno(), min(count - len(data), 1 << 20))):
            raise EOFError
        data += part
    return bytes(data)


def _is_closed(stream: IO[bytes]) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return bool(selector.select(0))


_the_process = SandboxProcess()
_in_here = False
atexit.register(_the_process.end)
os.register_at_fork(after_in_child=_the_process.forget)


def ask(action: str, source: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a program's answer; see `SandboxProcess.ask`."""
    if _in_here:
        from jaxllama.sandbox.answers import answer

        return answer(action, source, variables or {})
    return _the_process.ask(action, source, variables or {})


@contextmanager
def answered_in_here() -> Iterator[None]:
    """Run programs in this process and without limits meanwhile: ones of one's own alone.

    For whoever edits the code that runs them.
    """
    global _in_here
    before, _in_here = _in_here, True
    try:
        yield
    finally:
        _in_here = before
