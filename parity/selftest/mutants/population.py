"""A sample of mutants, each examined in a process of its own.

The processes are forked of one that has imported everything and run nothing: JAX must not have
started in it, for a fork of a process in which JAX runs threads may hang.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pickle
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxllama.errors import InputError
from parity.diagnose import cause
from parity.diagnose.edits import kinds
from parity.output_files import write_text
from parity.selftest.mutants import examine
from parity.selftest.mutants.examine import MutantResult, Originals, summary_of
from parity.selftest.mutants.reach import is_reached
from parity.selftest.mutants.rules import MODULES, Mutant, mutants_of, source_of

SCHEMA_VERSION = "1.0"
# A mutant that takes longer, a diagnosis included, is given up.
SECONDS = 90.0
# How often results are written down, in mutants.
SAVED_EVERY = 10

Progress = Callable[[str, int, int], None]


@dataclass
class Population:
    """What was found of a sample of mutants.

    Attributes:
        seed: of the sample.
        digest: of the source that was edited.
        generated: edits that the rules make.
        reached: those of statements that run.
        results: of the sample, in its order.
        seconds: in all.
    """

    seed: int
    digest: str
    generated: int
    reached: int
    results: list[MutantResult] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def summary(self) -> dict[str, Any]:
        """The figures."""
        return summary_of(self.results)

    @property
    def passed(self) -> bool:
        """Whether all that is no equivalent was detected, nothing explained wrongly or broken."""
        sums = self.summary
        return (
            sums["detected"] == sums["not_equivalent"]
            and not sums["wrong"]
            and not sums["alarms"]
            and not sums["broken"]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document."""
        rows = [{**asdict(row), "placed": row.placed} for row in self.results]
        return {
            "schema_version": SCHEMA_VERSION,
            "seed": self.seed,
            "source_sha256": self.digest,
            "generated": self.generated,
            "reached": self.reached,
            "seconds": self.seconds,
            "summary": self.summary,
            "mutants": rows,
        }


def examine_population(
    count: int, seed: int, *, jobs: int = 1, path: Path | None = None, progress: Progress
) -> Population:
    """Examine a sample of mutants.

    Args:
        count: of mutants; all if there are fewer.
        seed: of the sample.
        jobs: processes at a time.
        path: where the result is kept as JSON; what it holds of the same sample is not done again.
        progress: called with what is under way, how much is done and how much there is.

    Raises:
        InputError: the file holds something else.
    """
    began = time.monotonic()
    document = read_document(path)
    _import_all()
    every = [mutant for module in MODULES for mutant in mutants_of(module)]
    progress("the unchanged code", 0, count)
    original = _in_fork(examine.originals)
    reached = [mutant for mutant in every if is_reached(mutant, original.lines)]
    sample = random.Random(seed).sample(reached, min(count, len(reached)))
    digest = hashlib.sha256("".join(map(source_of, MODULES)).encode()).hexdigest()
    found = Population(seed, digest, len(every), len(reached))
    known = known_results(document, found)
    done = {mutant: known[mutant] for mutant in sample if mutant in known}

    def keep() -> None:
        found.results = [done[mutant] for mutant in sample if mutant in done]
        found.seconds = time.monotonic() - began
        if path is not None:
            write_text(path, json.dumps(found.to_dict(), indent=1) + "\n")

    todo = [mutant for mutant in sample if mutant not in done]
    try:
        for result in _examined(todo, original, jobs):
            done[result.mutant] = result
            progress("mutants", len(done), len(sample))
            if len(done) % SAVED_EVERY == 0:
                keep()
    finally:
        keep()
    return found


def _import_all() -> None:
    """Import what examining needs, so that no fork has to."""
    cause.catalogue()
    kinds.kinds()
    for module in (*MODULES, "parity.subjects.torch_reference.subject", "parity.runner.run"):
        importlib.import_module(module)


def read_document(path: Path | None) -> dict[str, Any]:
    """Return what a file of results holds; empty where there is none yet.

    Raises:
        InputError: the file holds something else, which would be lost.
    """
    if path is None or not path.exists() or not path.stat().st_size:
        return {}
    try:
        document = json.loads(path.read_text())
        rows = [_row_of(row) for row in document["mutants"]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: holds no results of mutants ({type(error).__name__}: {error}); give another "
            "file, or remove this one"
        ) from error
    return {**document, "mutants": rows}


def _row_of(row: Mapping[str, Any]) -> MutantResult:
    mutant = Mutant(**{**row["mutant"], "lines": tuple(row["mutant"]["lines"])})
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    del fields["placed"]
    fields["mutant"] = mutant
    return MutantResult(**fields)


def known_results(document: Mapping[str, Any], sample: Population) -> dict[Mutant, MutantResult]:
    """Return the results of a document that are of the same source and seed."""
    if (document.get("source_sha256"), document.get("seed")) != (sample.digest, sample.seed):
        return {}
    return {row.mutant: row for row in document["mutants"]}


def _examined(mutants: Sequence[Mutant], original: Originals, jobs: int) -> Iterator[MutantResult]:
    waiting, running = list(mutants), dict[int, _Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                one = _Running(waiting.pop(0), original)
                running[one.process] = one
            time.sleep(0.02)
            for process, one in list(running.items()):
                result = one.result()
                if result is not None:
                    del running[process]
                    yield result
    finally:
        for one in running.values():
            one.end()


class _Running:
    """A fork in which one mutant is examined."""

    def __init__(self, mutant: Mutant, original: Originals) -> None:
        self._mutant, self._began = mutant, time.monotonic()
        self.process, self._pipe = _forked(lambda: examine.examine(mutant, original))
        os.set_blocking(self._pipe, False)
        self._said = b""

    def result(self) -> MutantResult | None:
        """Return what was found, None while it goes on."""
        seconds = time.monotonic() - self._began
        try:
            while piece := os.read(self._pipe, 1 << 16):
                self._said += piece
        except BlockingIOError:
            if seconds < SECONDS:
                return None
            self.end()
            return MutantResult(self._mutant, "timeout", seconds=(seconds, seconds))
        os.close(self._pipe)
        _, status = os.waitpid(self.process, 0)
        if not self._said:
            said = f"the process ended with {os.waitstatus_to_exitcode(status)}"
            return MutantResult(self._mutant, "crash", said=said, seconds=(seconds, seconds))
        found: MutantResult = pickle.loads(self._said)
        return found

    def end(self) -> None:
        """Stop it."""
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self._pipe)


def _forked(work: Callable[[], Any]) -> tuple[int, int]:
    """Begin work in a fork; return its process and a pipe on which its result comes, pickled."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    status = 1
    try:
        os.close(reading)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)  # what libraries say of a mutant is no one's to read
        answer = pickle.dumps(work())
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(answer)
        status = 0
    finally:
        os._exit(status)


def _in_fork(work: Callable[[], Originals]) -> Originals:
    process, reading = _forked(work)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(process, 0)
    if not said:
        raise RuntimeError("the unchanged code could not be run")
    found: Originals = pickle.loads(said)
    return found
