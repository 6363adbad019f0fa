"""What is said of an error that ends a command, and the exit code that it gives.

0 and 1 are verdicts, 3 is their absence: no error gives one of these.
"""

from __future__ import annotations

import errno
import importlib.util
import sys
import traceback
from pathlib import Path

from jaxllama.errors import JaxLlamaError

BAD_INPUT = 2
INTERNAL = 4
# What of a foreign message fits a line.
_LENGTH = 400
_OURS = ("jaxllama", "parity")
# The extra that brings a package, by the name it is imported under.
_EXTRAS = {
    "torch": "parity",
    "transformers": "parity",
    "safetensors": "parity",
    "scipy": "parity",
    "PIL": "parity",
    "llama_models": "meta",
    "fairscale": "meta",
    "rouge_score": "quality",
    "sacrebleu": "quality",
    "lm_eval": "eval",
    "tqdm": "eval",
    "huggingface_hub": "hub",
    "grain": "train",
    "optax": "train",
}
# Of what is always installed, that which is imported under another name.
_PUBLISHED_AS = {"orbax": "orbax-checkpoint"}


def report_error(error: BaseException, program: str, *, debug: bool = False) -> int:
    """Say on standard error why a command ends; return its exit code.

    Args:
        error: what ended it.
        program: who speaks.
        debug: show where it came from, too.
    """
    if debug:
        traceback.print_exception(error)
    code, said = _code_and_line(error)
    print(f"{program}: {said}", file=sys.stderr)
    return code


def exit_code_of(end: SystemExit, program: str, *, debug: bool = False) -> int:
    """Return the exit code of what has left by itself; one who only says something has none."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    return report_error(end, program, debug=debug)


def report_unwritten(error: OSError, program: str) -> int:
    """Say that standard output took only a part; return the exit code, for the verdict may lack."""
    said = error.strerror or line_of(error)
    print(f"{program}: standard output: {said}; what it holds is incomplete", file=sys.stderr)
    return INTERNAL


def _code_and_line(error: BaseException) -> tuple[int, str]:
    if isinstance(error, JaxLlamaError):
        return error.exit_code, error.command
    more = "--debug shows the traceback"
    if is_of_memory(error):
        remedy = "give fewer or shorter inputs, or one dtype at a time"
        return INTERNAL, f"out of memory: {line_of(error)}; {remedy}; {more}"
    if isinstance(error, ImportError) and (needs := _needs(error)):
        return BAD_INPUT, needs
    if isinstance(error, OSError):
        return INTERNAL, f"the system refused: {line_of(error)} ({_place(error)}); {more}"
    return INTERNAL, f"internal error: {type_and_message(error)} ({_place(error)}); {more}"


def type_and_message(error: BaseException) -> str:
    """Return an error's type and message in one line."""
    said = line_of(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def line_of(error: BaseException) -> str:
    """Return an error's message in one line; empty where it has none."""
    try:
        said = " ".join(str(error).split())
    except Exception:  # of somebody else's making
        return "(its message cannot be shown)"
    return said if len(said) <= _LENGTH else f"{said[:_LENGTH]}..."


def is_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python, NumPy, JAX, PyTorch or the system."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    # JAX and PyTorch raise RuntimeErrors; neither is imported to ask which.
    kind, said = type(error).__name__, line_of(error)
    return kind == "OutOfMemoryError" or any(
        sign in said for sign in ("RESOURCE_EXHAUSTED", "allocate memory", "out of memory")
    )


def _needs(error: ImportError) -> str | None:
    """Say which package is missing or does not load; None where the fault is in our own."""
    package = (error.name or "").partition(".")[0]
    if package in _OURS:
        return None
    if isinstance(error, ModuleNotFoundError) and package and not _is_there(package):
        extra = _EXTRAS.get(package)
        remedy = f"'jaxllama[{extra}]'" if extra else _PUBLISHED_AS.get(package, package)
        return f"needs the package {package}, which is not installed: pip install {remedy}"
    what = package or "a package"
    return f"{what} does not load here: {line_of(error)}; install the version in constraints.txt"


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _place(error: BaseException) -> str:
    """Return the last place in our own files that an error has passed, or else the last at all."""
    frames = traceback.extract_tb(error.__traceback__)
    root = Path(__file__).parents[2]
    ours = [f for f in frames if any(Path(f.filename).is_relative_to(root / p) for p in _OURS)]
    if not (last := [*frames, *ours][-1:]):
        return "place unknown"
    path = Path(last[0].filename)
    shown = path.relative_to(root) if ours else path.name
    return f"{shown}:{last[0].lineno}"
