"""The process that strangers' programs run in: it answers until nobody asks any more.

A frame is eight bytes of length and as many of content: a pickle on the way in, which is of our own
making, and JSON on the way out.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import sys
from contextlib import suppress
from importlib import import_module
from typing import BinaryIO

LENGTH = struct.Struct("<Q")


def read_exactly(file: BinaryIO, count: int) -> bytes:
    """Return `count` bytes; raises `EOFError` where the other side has gone."""
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data


def main(module: str) -> None:
    """Answer what standard input asks on standard output, each with the means that it names.

    Args:
        module: whose `answer` it is.
    """
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    answer = import_module(module).answer
    with suppress(EOFError, BrokenPipeError):
        while True:
            seconds, nbytes, question = pickle.loads(
                read_exactly(asked, *LENGTH.unpack(read_exactly(asked, 8)))
            )
            _limit_memory(nbytes)
            _limit_time(seconds)
            try:
                said = json.dumps(answer(*question), ensure_ascii=False)
            except MemoryError:
                said = json.dumps({"beyond": f"takes more than {nbytes >> 20} MB"})
            content = said.encode("utf-8", "surrogatepass")
            answers.write(LENGTH.pack(len(content)) + content)
            answers.flush()


def _limit_memory(nbytes: int) -> None:
    # Where a system has no such limit those on time and length hold alone.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, resource.RLIM_INFINITY))


def _limit_time(seconds: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime) + seconds
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
