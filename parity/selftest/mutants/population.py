"""A sample of mutants, each examined in a process of its own.

The processes are forked of one that has imported everything and run nothing: JAX must not have
started in it, for a fork of a process in which JAX runs threads may hang.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import pickle
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jaxllama.errors import InputError
from jaxllama.files.output import write_text
from parity.diagnose import cause
from parity.diagnose.edits import kinds
from parity.options import Progress
from parity.selftest.mutants import examine
from parity.selftest.mutants.examine import MutantResult, Originals, summary_of
from parity.selftest.mutants.forms import OriginalForms
from parity.selftest.mutants.rules import GROUPS, MODULES, Mutant, mutants_of, source_of
from parity.tokens.others import JSON_FILE, META_FILE, require_package

SCHEMA_VERSION = "1.1"
# A mutant that takes longer, a diagnosis included, is given up: so many seconds of a processor, or
# so many times what the run of the unchanged code takes where that is more, and never more than the
# third. They are the mutant's own: a busy machine gives up no more than a quiet one. One that waits
# for what never comes takes none: it is given up after so many times as many by the clock.
SECONDS, TIMES, MOST_SECONDS = 30.0, 10.0, 90.0
ASLEEP_TIMES = 20.0
# What a sample has of each group, as far as there are so many.
SHARES = {"model": 6, "writing": 1, "tokens": 1, "reading": 1}
# How often results are written down, in mutants.
SAVED_EVERY = 10


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
        """The figures, of all and of each group."""
        groups = {
            group: summary_of([row for row in self.results if row.mutant.group == group])
            for group in GROUPS
        }
        return {**summary_of(self.results), "groups": groups}

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
        rows = [
            {
                **asdict(row),
                "placed": row.placed,
                "group": row.mutant.group,
                "caught_by": row.caught_by,
            }
            for row in self.results
        ]
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
    count: int,
    seed: int,
    *,
    groups: Sequence[str] = tuple(GROUPS),
    jobs: int = 1,
    path: Path | None = None,
    progress: Progress,
) -> Population:
    """Examine a sample of mutants.

    Args:
        count: of mutants; all if there are fewer.
        seed: of the sample.
        groups: which modules, by their names in `parity.selftest.mutants.rules.GROUPS`.
        jobs: processes at a time.
        path: where the result is kept as JSON; what it holds of the same sample is not done again.
        progress: called with what is under way, how much is done and how much there is.

    Raises:
        InputError: the file holds something else, or a package is missing that Meta's tokenizer is
            compared with.
    """
    began = time.monotonic()
    document = read_document(path)
    if "tokens" in groups:
        require_package(META_FILE)
    _import_all()
    every = {
        group: [mutant for module in GROUPS[group] for mutant in mutants_of(module)]
        for group in groups
    }
    digest = hashlib.sha256("".join(map(source_of, MODULES)).encode()).hexdigest()
    done: dict[Mutant, MutantResult] = {}
    with tempfile.TemporaryDirectory(prefix="parity-") as work:
        folder = Path(work)
        progress("the unchanged code", 0, count)
        if set(groups) - {"model", "writing"}:
            _in_fork(lambda: examine.write_checkpoints(folder))
        original = dict(zip(groups, _originals(groups, folder, jobs), strict=True))
        reached = {
            group: [mutant for mutant in mutants if original[group].reaches(mutant)]
            for group, mutants in every.items()
        }
        sample = sample_of(reached, count, seed)
        found = Population(
            seed, digest, sum(map(len, every.values())), sum(map(len, reached.values()))
        )
        known = known_results(document, found)
        done |= {mutant: known[mutant] for mutant in sample if mutant in known}

        def keep() -> None:
            found.results = [done[mutant] for mutant in sample if mutant in done]
            found.seconds = time.monotonic() - began
            if path is not None:
                write_text(path, json.dumps(found.to_dict(), indent=1) + "\n")

        todo = [mutant for mutant in sample if mutant not in done]
        try:
            for result in _examined(todo, original, folder, jobs):
                done[result.mutant] = result
                progress("mutants", len(done), len(sample))
                if len(done) % SAVED_EVERY == 0:
                    keep()
        finally:
            keep()
    return found


def sample_of(reached: Mapping[str, Sequence[Mutant]], count: int, seed: int) -> list[Mutant]:
    """Draw mutants of all groups by their shares; a larger sample begins with the smaller one.

    Args:
        reached: what there is, by group.
        count: how many; all if there are fewer.
        seed: of the draw.
    """
    left = {
        group: random.Random(f"{seed} {group}").sample(mutants, len(mutants))
        for group, mutants in reached.items()
    }
    taken, sample = dict.fromkeys(left, 0), list[Mutant]()
    while len(sample) < count and any(left.values()):
        behind = [group for group in left if left[group]]
        group = min(behind, key=lambda one: (taken[one] + 1) / SHARES[one])
        taken[group] += 1
        sample.append(left[group].pop())
    return sample


def _originals(
    groups: Sequence[str], folder: Path, jobs: int
) -> Iterator[Originals | OriginalForms]:
    """Yield what the unchanged code of each group does, some at a time."""
    for start in range(0, len(groups), jobs):
        begun = [
            _forked(partial(examine.originals, group, folder))
            for group in groups[start : start + jobs]
        ]
        for one in begun:
            yield _answer_of(*one)


def _import_all() -> None:
    """Import what examining needs, so that no fork has to."""
    cause.catalogue()
    kinds.kinds()
    for module in (*MODULES, "parity.subjects.torch_reference.subject", "parity.runner.run"):
        importlib.import_module(module)
    for format in ("gguf_file", "hf", "meta", "orbax_directory"):
        importlib.import_module(f"parity.sources.{format}")
    require_package(JSON_FILE)


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
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: holds no results of mutants ({type(error).__name__}: {error}); give another "
            "file, or remove this one"
        ) from error
    return {**document, "mutants": rows}


def _row_of(row: Mapping[str, Any]) -> MutantResult:
    mutant = Mutant(**{**row["mutant"], "lines": tuple(row["mutant"]["lines"])})
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    for derived in ("placed", "group", "caught_by"):
        del fields[derived]
    fields["mutant"] = mutant
    return MutantResult(**fields)


def known_results(document: Mapping[str, Any], sample: Population) -> dict[Mutant, MutantResult]:
    """Return the results of a document that are of the same source and seed."""
    if (document.get("source_sha256"), document.get("seed")) != (sample.digest, sample.seed):
        return {}
    return {row.mutant: row for row in document["mutants"]}


def _examined(
    mutants: Sequence[Mutant],
    original: Mapping[str, Originals | OriginalForms],
    folder: Path,
    jobs: int,
) -> Iterator[MutantResult]:
    waiting, running = list(mutants), dict[int, _Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop(0)
                one = _Running(mutant, original[mutant.group], folder)
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

    def __init__(self, mutant: Mutant, original: Originals | OriginalForms, folder: Path) -> None:
        self._mutant, self._began = mutant, time.monotonic()
        seconds = min(max(SECONDS, TIMES * original.seconds), MOST_SECONDS)
        self._most = ASLEEP_TIMES * seconds
        work = partial(examine.examine, mutant, original, folder)
        self.process, self._pipe = _forked(work, seconds)
        os.set_blocking(self._pipe, False)
        self._said = b""

    def result(self) -> MutantResult | None:
        """Return what was found, None while it goes on."""
        seconds = time.monotonic() - self._began
        try:
            while piece := os.read(self._pipe, 1 << 16):
                self._said += piece
        except BlockingIOError:
            if seconds < self._most:
                return None
            self.end()
            return MutantResult(self._mutant, "timeout", seconds=(seconds, seconds))
        os.close(self._pipe)
        _, status = os.waitpid(self.process, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
            return MutantResult(self._mutant, "timeout", seconds=(seconds, seconds))
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


def _forked(work: Callable[[], Any], most: float | None = None) -> tuple[int, int]:
    """Begin work in a fork; return its process and a pipe on which its result comes, pickled.

    Args:
        work: what is to be done.
        most: seconds of a processor, after which the system ends it with SIGXCPU.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    status = 1
    try:
        if most is not None:
            signal.signal(signal.SIGXCPU, signal.SIG_DFL)
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(most), hard))
        os.close(reading)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)  # what libraries say of a mutant is no one's to read
        answer = pickle.dumps(work())
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(answer)
        status = 0
    finally:
        os._exit(status)


def _in_fork(work: Callable[[], Any]) -> Any:
    return _answer_of(*_forked(work))


def _answer_of(process: int, reading: int) -> Any:
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(process, 0)
    if not said:
        raise RuntimeError("the unchanged code could not be run")
    return pickle.loads(said)
