"""What is asked for, checked as a whole before anything is loaded."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxllama.bench import machine
from jaxllama.bench.measures import Measure, measures
from jaxllama.bench.variants import VARIANTS
from jaxllama.dtypes import parse, short_name
from jaxllama.errors import InputError, argument, join_problems, meant
from jaxllama.memory import free_bytes, size_in_words
from jaxllama.quantisation import cache_bytes

if TYPE_CHECKING:
    from jaxllama.checkpoint import Checkpoint

DTYPES = ("f32", "bf16")
# Of a process: Python, a framework and what it compiles. Measured: 0.3 to 0.6 GB.
_PROCESS_BYTES = 500_000_000
# Loading holds some tensors twice.
_WEIGHTS_TIMES = 1.5
# Beyond all honest use; a list of prompts with such a length would never end.
_MOST = 1 << 20


@dataclass(frozen=True)
class BenchRequest:
    """What is to be measured.

    Attributes:
        checkpoint: as it was named.
        variants: in the catalogue's order.
        measures: in the order they are taken.
        rounds: of each measure.
        threads: processors of each variant.
        seconds: after which no measure begins.
    """

    checkpoint: str
    variants: tuple[str, ...]
    measures: tuple[Measure, ...]
    rounds: int
    threads: int
    seconds: float

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Those that are measured in."""
        return tuple(dict.fromkeys(measure.dtype for measure in self.measures))

    @property
    def command(self) -> str:
        """What is typed to have it again."""
        prompts = {m.prompt: 0 for m in self.measures if m.kind == "prefill"}
        decodes = [m for m in self.measures if m.kind == "decode"]
        options = {
            "prompt": sorted(prompts),
            "batch": {m.batch: 0 for m in decodes},
            "dtype": self.dtypes,
            "variants": self.variants,
            "rounds": [self.rounds],
            "new-tokens": [decodes[0].new],
            "threads": [self.threads],
            "seconds": [f"{self.seconds:g}"],
        }
        words = [f"--{name} {','.join(map(str, values))}" for name, values in options.items()]
        return " ".join(["jaxllama bench", shlex.quote(self.checkpoint), *words])


def check_request(
    checkpoint: str,
    opened: Checkpoint,
    *,
    prompt: str,
    batch: str,
    dtype: str,
    variants: str,
    rounds: int,
    new_tokens: int,
    threads: int | None,
    seconds: float,
) -> BenchRequest:
    """Return the request in plain types, or say everything that is wrong with it.

    Args:
        checkpoint: as it was named.
        opened: the same, of which only metadata has been read.
        prompt: lengths, separated by commas.
        batch: rows, likewise.
        dtype: dtypes, likewise.
        variants: names, likewise, or `all`.
        rounds: of each measure.
        new_tokens: steps of decoding that are timed.
        threads: processors; all that may be used if None.
        seconds: after which no measure begins.

    Raises:
        InputError: all that is wrong.
    """
    problems: list[str] = []
    lengths = _numbers("prompt", prompt, problems)
    rows = _numbers("batch", batch, problems)
    names = _choice("variants", variants, tuple(VARIANTS), problems)
    dtypes = _dtypes(dtype, problems)
    for name, value in (("rounds", rounds), ("new_tokens", new_tokens)):
        if not 1 <= value <= _MOST:
            problems.append(f"{argument(name, value)}: expected a whole number from 1 to {_MOST}")
    if not seconds > 0:
        problems.append(f"{argument('seconds', seconds)}: expected more than 0")
    available = machine.available_threads()
    if threads is not None and not 1 <= threads <= available:
        problems.append(
            f"{argument('threads', threads)}: expected 1 to {available}, the processors that this "
            "process may run on"
        )
    if problems:
        raise InputError(join_problems("bench", problems))
    wanted = tuple(measures(lengths, rows, dtypes, new_tokens))
    found = BenchRequest(checkpoint, names, wanted, rounds, threads or available, float(seconds))
    problems = [*_context(opened, wanted), *_memory(opened, found)]
    if problems:
        raise InputError(join_problems("bench", problems))
    return found


def _numbers(option: str, given: str, problems: list[str]) -> tuple[int, ...]:
    words = [word.strip() for word in given.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word[:9]) >= 1 for word in words) or any(
        int(word) > _MOST for word in words
    ):
        problems.append(
            f"{argument(option, given)}: expected whole numbers from 1 to {_MOST}, separated by "
            "commas"
        )
        return ()
    return tuple(dict.fromkeys(int(word) for word in words))


def _choice(option: str, given: str, known: Sequence[str], problems: list[str]) -> tuple[str, ...]:
    words = [word.strip() for word in given.split(",")]
    if words == ["all"]:
        return tuple(known)
    for word in words:
        if word not in known:
            problems.append(
                f"{argument(option, word)}: {meant(word, known)}expected one or more of "
                f"{', '.join(known)}, separated by commas, or all"
            )
    return tuple(name for name in known if name in words)


def _dtypes(given: str, problems: list[str]) -> tuple[str, ...]:
    found = []
    for word in given.split(","):
        try:
            found.append(short_name(word.strip()))
        except InputError:
            found.append(word.strip())
    unknown = [name for name in found if name not in DTYPES]
    if unknown:
        problems.append(
            f"{argument('dtype', ','.join(unknown))}: expected one or more of {', '.join(DTYPES)}, "
            "separated by commas"
        )
    return tuple(name for name in DTYPES if name in found)


def _context(opened: Checkpoint, wanted: Sequence[Measure]) -> list[str]:
    """Say which measures hold more tokens than the configuration allows."""
    problems = {}
    for one in wanted:
        prefill = one.kind == "prefill"
        lower = f"lower {argument('prompt')}" if prefill else f"lower {argument('new_tokens')}"
        if found := opened.config.context_problems(one.context, one.group, lower):
            problems[one.group] = found
    return [problem for found in problems.values() for problem in found]


def _memory(opened: Checkpoint, request: BenchRequest) -> list[str]:
    """Say whether the processes of a dtype fit in memory: those that wait keep their weights."""
    free = free_bytes()
    stored = sum(info.nbytes // info.dtype.itemsize for info in opened.tensors.values())
    widest = max(parse(dtype).itemsize for dtype in request.dtypes)
    cache = max(
        cache_bytes(opened.config, one.batch, one.context, parse(one.dtype))
        for one in request.measures
    )
    count = len(request.variants)
    needed = count * (_PROCESS_BYTES + int(_WEIGHTS_TIMES * stored * widest) + cache)
    if free is None or needed <= free:
        return []
    return [
        f"{count} variants take about {size_in_words(needed)} together, and {size_in_words(free)} "
        f"of this machine's memory are free; give fewer {argument('variants')}, or a smaller "
        f"{argument('batch')} or {argument('prompt')}"
    ]
