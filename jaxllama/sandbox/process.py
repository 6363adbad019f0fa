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
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from jaxllama.files import limits

# Eight bytes of length stand before each question and answer.
_LENGTH = struct.Struct("<Q")
# Six bytes is the longest that JSON spells a character with.
_MOST_BYTES = 6 * limits.RENDERED_CHARACTERS + 1000


@dataclass(frozen=True)
class Means:
    """What an answer may take.

    Attributes:
        seconds: of the processor's time.
        nbytes: of memory.
        answer: bytes of the answer.
    """

    seconds: int
    nbytes: int
    answer: int

    def plus(self, other: Means) -> Means:
        """Return the sum."""
        return Means(
            self.seconds + other.seconds, self.nbytes + other.nbytes, self.answer + other.answer
        )


class SandboxProcess:
    """A process that answers one question at a time, from any thread.

    It ends with this one, however that ends: nothing is left to read.

    Args:
        seconds: of the processor's time, of each answer.
        nbytes: of memory, Python's own included.
        answers: the module whose `answer` is asked.
    """

    def __init__(
        self,
        seconds: int = limits.SANDBOX_SECONDS,
        nbytes: int = limits.SANDBOX_BYTES,
        answers: str = "jaxllama.sandbox.answers",
    ) -> None:
        self._most = Means(seconds, nbytes, _MOST_BYTES)
        self._answers = answers
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        _all.add(self)

    def ask(
        self, action: str, source: str, variables: Mapping[str, Any], *, more: Means | None = None
    ) -> dict[str, Any]:
        """Return a program's answer; see `jaxllama.sandbox.answers.answer`.

        Args:
            action: see there, as for `source` and `variables`.
            source: likewise.
            variables: likewise.
            more: what this question may take beyond what any may.

        Raises:
            OSError: no process can be started.
        """
        most = self._most if more is None else self._most.plus(more)
        question = pickle.dumps((most.seconds, most.nbytes, (action, source, dict(variables))))
        with self._lock:
            try:
                return self._answer(question, most)
            except BaseException:  # Ctrl-C too: an answer that is still to come is nobody's
                self._end()
                raise

    def _answer(self, question: bytes, most: Means) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = _started(self._answers)
        wait = limits.SANDBOX_WAIT_SECONDS * most.seconds / self._most.seconds
        until = time.monotonic() + wait
        try:
            _write(_stream(self._process.stdin), _LENGTH.pack(len(question)) + question, until)
            output = _stream(self._process.stdout)
            (length,) = _LENGTH.unpack(_read(output, _LENGTH.size, until))
            found: dict[str, Any] = (
                json.loads(_read(output, length, until).decode("utf-8", "surrogatepass"))
                if length <= most.answer
                else {"beyond": f"gives more than {limits.RENDERED_CHARACTERS} characters"}
            )
        except TimeoutError:
            self._end()
            return {"beyond": f"takes more than {wait:g} seconds"}
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return {"beyond": _end_of(self._end(), most)}
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


def _end_of(code: int | None, most: Means) -> str:
    """Say why a process is gone."""
    if code == -signal.SIGXCPU:
        return f"takes more than {most.seconds} seconds"
    # The system's own limit on memory, Python's, or Rust's, which aborts there.
    if code in (-signal.SIGKILL, 1, -signal.SIGABRT):
        return f"takes more than {most.nbytes >> 20} MB"
    return f"ends the process that runs it (code {code})"


def _started(answers: str) -> subprocess.Popen[bytes]:
    # Neither the directory that it is started in nor the user's settings say what is imported.
    root = str(Path(__file__).parents[2])
    paths = [root, *(path for path in sys.path if path)]
    program = f"import sys; sys.path[:] = {paths!r}; from jaxllama.sandbox.worker import main"
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", f"{program}; main({answers!r})"],
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


_all: weakref.WeakSet[SandboxProcess] = weakref.WeakSet()
_the_process = SandboxProcess()
_in_here = False


def _end_all() -> None:
    for one in list(_all):
        one.end()


def _forget_all() -> None:
    for one in list(_all):
        one.forget()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_forget_all)


def is_in_here() -> bool:
    """Whether programs run in this process, see `answered_in_here`."""
    return _in_here


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
