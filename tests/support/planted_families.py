"""Readers that go wrong in each way that fuzzing.py has to count, at the second of three tries."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_families import Family, Try, ended

from jaxllama.errors import CheckpointError


def _refuse() -> str:
    raise CheckpointError("no")


def _flood() -> str:
    error = CheckpointError("no")
    error.args = ("no " * 10_000,)
    raise error


def _memory() -> str:
    return str(np.ones((5 << 30) // 32, np.float64).sum())[:0] + "same"


PLANTED: dict[str, Callable[[], Any]] = {
    "uncaught": lambda: {}["x"],
    "hang": lambda: time.sleep(60),
    "abort": os.abort,
    "memory": _memory,
    "silent": lambda: "silent: other weights",
    "wrote": lambda: "wrote: a file",
    "flood": _flood,
}


def _prepare(kind: str, work: Path) -> Try:
    def one(place: Path, number: int, rng: random.Random) -> str:
        return str(ended(PLANTED[kind] if number == 1 else _refuse))

    return one


FAMILIES = {kind: Family(3, partial(_prepare, kind)) for kind in PLANTED}
