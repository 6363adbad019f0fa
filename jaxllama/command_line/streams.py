"""Standard output and error of a command: the one place where its text leaves.

What becomes of them never becomes its exit code, and what a terminal would obey is escaped:
names, messages and results come from files, and files from strangers.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jaxllama.command_line.printable import spell_out


class Outlet(io.FileIO):
    """A standard stream that whoever reads it may close, and whose disk may be full.

    From then on what is written goes nowhere, in C libraries and child processes as well, and the
    command carries on: its verdict and its other files are worth having. Left to themselves a
    closed pipe raises wherever something is printed, which rich and typer turn into exit code 1,
    and Python's own last flush into 120.

    Attributes:
        unread: whether the reader has gone, as `| head -1` does once it has its line.
        failure: what the system said where writing failed otherwise; None if it did not.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.unread = False
        self.failure: OSError | None = None

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            self.unread = isinstance(error, BrokenPipeError)
            self.failure = None if self.unread else error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


class EscapedText(io.TextIOWrapper):
    """A stream that escapes what is written to it."""

    def write(self, text: str) -> int:
        super().write(spell_out(text))
        return len(text)


class TextAsItIs:
    """The same stream without the escapes, for who writes control sequences of its own."""

    def __init__(self, stream: EscapedText) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return io.TextIOWrapper.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def as_is(stream: Any) -> Any:
    """Return a stream that obeys what is written to it, whoever else has it escaped."""
    return TextAsItIs(stream) if isinstance(stream, EscapedText) else stream


def prepare() -> None:
    """Make the standard streams of this process fit for a command.

    One that was closed (`>&-`) leads nowhere from now on: its number would be given to the next
    file that is opened, which would then take what C libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(descriptor, True)  # as the others are, to child processes
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 (it stays open)
    sys.stdout = _outlet(sys.stdout, 1)
    sys.stderr = _outlet(sys.stderr, 2)


def _outlet(stream: Any, descriptor: int) -> Any:
    if stream is None:
        return EscapedText(io.BufferedWriter(Outlet(descriptor)), encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):  # another program's own
        return stream
    stream.flush()
    # What a terminal's encoding lacks would raise in the middle of a verdict.
    errors = "replace" if stream.errors == "strict" else stream.errors
    return EscapedText(
        io.BufferedWriter(Outlet(stream.fileno())),
        encoding=stream.encoding,
        errors=errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def outlet_of(stream: Any) -> Outlet | None:
    """Return what is below a standard stream that `prepare` has set up; None below another."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, Outlet) else None


def is_unread(stream: Any) -> bool:
    """Return whether nobody reads a standard stream any more."""
    outlet = outlet_of(stream)
    return outlet is not None and outlet.unread


def flush(stream: Any) -> OSError | None:
    """Write out what a stream still holds; return what kept it from being written, ever."""
    with suppress(ValueError):  # closed by someone
        if stream is not None:
            stream.flush()
    outlet = outlet_of(stream)
    return None if outlet is None else outlet.failure


@contextmanager
def libraries_on_stderr() -> Iterator[None]:
    """Let what libraries print by themselves go to standard error, and only ours to output.

    Gloo tells there how many processes it has found, in the midst of JSON.
    """
    before, kept = sys.stdout, os.dup(1)
    before.flush()
    outlet = Outlet(kept)
    os.dup2(2, 1)
    sys.stdout = EscapedText(
        io.BufferedWriter(outlet), encoding=before.encoding, errors=before.errors
    )
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout = before
        if (below := outlet_of(before)) is not None:
            below.unread, below.failure = outlet.unread, outlet.failure
        os.dup2(kept, 1)
        os.close(kept)
