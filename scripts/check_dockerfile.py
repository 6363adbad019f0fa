"""Run the steps of a Dockerfile without docker: in a folder that stands for its root.

Usage: check_dockerfile.py [--build-arg NAME=VALUE ...] [--python PYTHON]. Each stage gets a folder
of its own; paths from the root are moved into it, `python` is the given interpreter, and of the
environment the steps see PATH, HOME and what pip is told. The base image, its system packages and
its users are not there: that this shows nothing of them is said at the end.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Paths that steps make; those of a base image (/bin, /dev/null) are left as they are.
MADE = re.compile(r"(?<![\w./])/(?=(src|dist|opt|work)\b)")
PASSED = ("HOME", "LANG", "PATH", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


@dataclass(frozen=True)
class Step:
    """An instruction and what follows it."""

    instruction: str
    rest: str


def steps(text: str) -> list[Step]:
    """Return a Dockerfile's instructions, continued lines joined.

    Raises:
        ValueError: an instruction that this script does not know how to run.
    """
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines).splitlines()
    found = [Step(*line.split(maxsplit=1)) for line in joined if line.strip()]
    known = ("ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "WORKDIR")
    if unknown := {step.instruction for step in found} - set(known):
        raise ValueError(f"Dockerfile: {', '.join(sorted(unknown))}: expected {', '.join(known)}")
    return found


class Stage:
    """A stage that is being run.

    Args:
        place: the folder that stands for its root.
        python: interpreter of the base image.
    """

    def __init__(self, place: Path, python: str) -> None:
        self.place, self.at = place, place
        (place / "bin").mkdir(parents=True)
        (place / "bin/python").symlink_to(python)
        kept = {k: v for k, v in os.environ.items() if k in PASSED or k.startswith("PIP_")}
        self.environment = {**kept, "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def moved(self, text: str) -> str:
        """Return a text with the paths that steps make put into the folder."""
        return MADE.sub(f"{self.place}/", text)

    def take(self, step: Step, arguments: Mapping[str, str], stages: Mapping[str, Stage]) -> None:
        """Carry out one instruction.

        Raises:
            CalledProcessError: a RUN step failed.
        """
        if step.instruction == "ARG":
            name, _, usual = step.rest.partition("=")
            self.environment[name] = arguments.get(name, usual)
        elif step.instruction == "WORKDIR":
            self.at = Path(self.moved(step.rest))
            self.at.mkdir(parents=True, exist_ok=True)
        elif step.instruction == "COPY":
            self._copy(step.rest.split(), stages)
        elif step.instruction == "RUN":
            shell = ("/bin/sh", "-c", self.moved(step.rest))
            subprocess.run(shell, cwd=self.at, env=self.environment, check=True)
        elif step.instruction == "ENV":
            for pair in step.rest.split():
                name, _, value = pair.partition("=")
                before = self.environment.get(name, "")
                self.environment[name] = self.moved(value).replace(f"${name}", before)

    def _copy(self, words: list[str], stages: Mapping[str, Stage]) -> None:
        *options, source, into = words
        target = self.at / self.moved(into)
        if options:
            other = stages[options[0].removeprefix("--from=")]
            shutil.copytree(Path(other.moved(source)), target, dirs_exist_ok=True)
        elif source == ".":
            copy_tree(target)
        else:
            shutil.copy(ROOT / source, target)


def copy_tree(target: Path) -> None:
    """Copy what belongs to the project, caches and builds aside."""
    listed = subprocess.run(
        ("git", "ls-files", "--cached", "--others", "--exclude-standard"),
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def build(found: Iterable[Step], arguments: Mapping[str, str], place: Path, python: str) -> Stage:
    """Run all steps, and return the last stage."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for step in found:
        if step.instruction == "FROM":
            words = step.rest.split()
            name = words[2] if len(words) == 3 else f"stage{len(stages)}"
            stage = stages[name] = Stage(place / name, python)
        elif stage is not None:
            print(f"{step.instruction} {step.rest[:90]}", flush=True)
            stage.take(step, arguments, stages)
    assert stage is not None, "Dockerfile: no FROM"
    return stage


def main(arguments: list[str] | None = None) -> int:
    """Run the Dockerfile's steps, then its CMD."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build-arg", action="append", default=[])
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args(arguments)
    given = dict(pair.split("=", 1) for pair in options.build_arg)
    found = steps((ROOT / "Dockerfile").read_text())
    with tempfile.TemporaryDirectory() as place:
        try:
            last = build(found, given, Path(place), options.python)
            command = found[-1].rest.strip("[]").replace('"', "").split(", ")
            subprocess.run(
                command, cwd=last.at, env=last.environment, check=True, stdout=subprocess.DEVNULL
            )
        except subprocess.CalledProcessError as error:
            print(f"error: a step failed: exit code {error.returncode}", file=sys.stderr)
            return 1
    print("all steps run; not shown: the base image, system packages, users, a GPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
