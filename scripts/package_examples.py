"""Run README's examples with an installed jaxllama, outside the repository; exit 1 if one fails.

Usage: package_examples.py README.md PYTHON [--torch]. PYTHON is the interpreter that it was
installed for; without --torch the examples that need PyTorch are left out, and said.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Lines of README's shell blocks that need no download and take seconds, with their exit codes.
WITHOUT_TORCH = {
    "jaxllama convert tiny tiny-q8.gguf --to gguf --quantize q8_0": 0,
    "python -c \"import numpy; numpy.save('mask.npy', numpy.tril(numpy.ones((1, 1, 6, 6))))\"": 0,
    "parity lint mask.npy --use additive": 1,
    "parity explain M01": 0,
    "parity probe xla": 0,
}
WITH_TORCH = {
    "parity run tiny --override rope_theta=1e6": 1,
    "parity run tiny --mode tokens": 0,  # imports transformers
}
# What README does not say as a line of its own: both commands, and a page drawn from package data.
BESIDES = {"jaxllama --help": 0, "parity --help": 0, "parity explain entropy-collapse": 0}
BESIDES_WITH_TORCH = {"parity health tiny --html health.html": 0}


@dataclass(frozen=True)
class Example:
    """A piece of Python, or a command with its exit code."""

    name: str
    words: tuple[str, ...]
    expected: int = 0


def examples(readme: str, torch: bool) -> Iterator[Example]:
    """Yield the examples of a text.

    Raises:
        ValueError: a command that is run here is not in the text.
    """
    lines = {line.split("  #")[0].strip() for line in readme.splitlines()}
    commands = WITHOUT_TORCH | (WITH_TORCH if torch else {})
    if gone := [line for line in commands if line not in lines]:
        raise ValueError(f"not in README.md: {'; '.join(gone)}; mend scripts/package_examples.py")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    for number, block in enumerate(blocks, 1):
        if not torch and re.search(r"^(import|from) parity\b", block, re.MULTILINE):
            continue
        yield Example(f"README's Python {number} of {len(blocks)}", ("python", "-c", block))
    for line, code in (commands | BESIDES | (BESIDES_WITH_TORCH if torch else {})).items():
        yield Example(line, tuple(shlex.split(line)), code)


def failure(example: Example, python: Path, work: Path) -> str | None:
    """Run an example in a folder; return how it failed, None if it did not."""
    # PATH alone says which jaxllama runs: nothing of the caller's Python leaks in.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    kept["PATH"] = f"{python.parent}{os.pathsep}{kept['PATH']}"
    command = [str(python.parent / example.words[0]), *example.words[1:]]
    done = subprocess.run(command, cwd=work, env=kept, capture_output=True, text=True)
    if done.returncode == example.expected:
        return None
    said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
    return f"exit code {done.returncode}, expected {example.expected}\n{said}"


def failures(readme: str, python: Path, torch: bool) -> list[str]:
    """Run all examples in a new folder, and return how they failed."""
    failed = []
    with tempfile.TemporaryDirectory() as work:
        for example in examples(readme, torch):
            start = time.monotonic()
            how = failure(example, python, Path(work))
            seconds = time.monotonic() - start
            print(
                f"{'ok' if how is None else 'FAILED'} {seconds:5.1f} s  {example.name}", flush=True
            )
            if how is not None:
                failed.append(f"{example.name}: {how}")
        if torch and "<svg" not in (Path(work) / "health.html").read_text():
            failed.append("health.html: no drawing in it")
    if not torch:
        print(f"not run, they need PyTorch: {'; '.join(WITH_TORCH | BESIDES_WITH_TORCH)}")
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Run the examples and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readme", type=Path)
    parser.add_argument("python", type=Path)
    parser.add_argument("--torch", action="store_true")
    options = parser.parse_args(arguments)
    # Not resolved: a virtual environment's interpreter is a link out of it.
    failed = failures(options.readme.read_text(), options.python.absolute(), options.torch)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
