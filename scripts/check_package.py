"""Build sdist and wheel, install each in a bare environment, and run README's examples there.

Usage: check_package.py [--constraints ci/oldest.txt ...] [--extras parity] [--python PYTHON]
[--sbom FOLDER]. One environment for each file of constraints. Needs the tools of ci/tools.txt.
Exit 1 names all that is wrong: a warning of the build, a file that did not come along, metadata
that an index refuses, an example that fails, a distribution that the bill of materials skips.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import package_examples
import sbom

ROOT = Path(__file__).parent.parent
# Of this repository's own CI, of no use to who has the source alone.
NOT_IN_SDIST = (".ci/",)
# A build that says one of these is not clean.
WARNINGS = ("warning", "deprecat")
# The tree that is built: what git has or would take, so that caches cannot come along.
TREE = ("git", "ls-files", "--cached", "--others", "--exclude-standard")


def tree() -> list[str]:
    """Return the files of the working tree that belong to the project."""
    listed = subprocess.run(TREE, cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def missing(files: Iterable[str], sdist: Iterable[str], wheel: Iterable[str]) -> list[str]:
    """Return what of the project's files did not come along.

    Args:
        files: of the working tree.
        sdist: names in the sdist, without its topmost folder.
        wheel: names in the wheel.
    """
    sdist, wheel = set(sdist), set(wheel)
    files = [name for name in files if not name.startswith(NOT_IN_SDIST)]
    packages = [name for name in files if name.startswith(("jaxllama/", "parity/"))]
    return [f"{name}: not in the sdist, see MANIFEST.in" for name in files if name not in sdist] + [
        f"{name}: not in the wheel, see package-data in pyproject.toml"
        for name in packages
        if name not in wheel
    ]


def unclean(said: str) -> list[str]:
    """Return the lines of a build's output that warn."""
    return [
        f"python -m build: {line.strip()}"
        for line in said.splitlines()
        if any(word in line.lower() for word in WARNINGS)
    ]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command; return what it said.

    Raises:
        SystemExit: it failed.
    """
    words = [str(word) for word in command]
    # A setting of who runs this, of which a build warns.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"error: {' '.join(words)}: exit code {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout


def build(work: Path) -> tuple[Path, Path, list[str]]:
    """Build the sdist, and the wheel from it; return both, and the problems of either."""
    source, dist = work / "source", work / "dist"
    files = tree()
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    said = run(sys.executable, "-m", "build", "--outdir", dist, source)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    with tarfile.open(sdist) as archive:
        in_sdist = [name.partition("/")[2] for name in archive.getnames()]
    in_wheel = zipfile.ZipFile(wheel).namelist()
    problems = unclean(said) + missing(files, in_sdist, in_wheel)
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    check_citation()
    print(f"built {sdist.name} ({len(in_sdist)} entries) and {wheel.name} ({len(in_wheel)})")
    return sdist, wheel, problems


def check_citation() -> None:
    """Hold CITATION.cff to the schema of its format."""
    schema = ("--builtin-schema", "vendor.citation-file-format")
    run(sys.executable, "-m", "check_jsonschema", *schema, ROOT / "CITATION.cff")


def install(python: str, place: Path, wheel: Path, extras: str, constraints: Path | None) -> Path:
    """Install a wheel into a new environment; return its interpreter."""
    run(python, "-m", "venv", place)
    pip = (place / "bin" / "python", "-m", "pip", "install", "--quiet")
    held = () if constraints is None else ("--constraint", constraints)
    run(*pip, *held, f"{wheel}[{extras}]" if extras else wheel)
    run(place / "bin" / "python", "-m", "pip", "check")
    return place / "bin" / "python"


def installed(python: Path) -> dict[str, str]:
    """Return the files that jaxllama is installed with, and their digests."""
    code = (
        "import importlib.metadata as m\n"
        "for f in m.files('jaxllama'):\n"
        "    if f.hash and f.suffix != '.pyc' and 'dist-info' not in str(f): print(f, f.hash.value)"
    )
    lines = run(python, "-I", "-c", code).splitlines()
    return dict(line.rsplit(" ", 1) for line in lines)


def as_from_wheel(python: Path, sdist: Path) -> list[str]:
    """Install the sdist over the wheel's installation, and return where the two differ."""
    before = installed(python)
    run(python, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", sdist)
    after = installed(python)
    return [
        f"{name}: not the same from the sdist as from the wheel"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Build, install and run; say all problems."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraints", type=Path, nargs="*", default=[])
    parser.add_argument("--extras", default="parity")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--sbom", type=Path, help="folder for a bill of materials of each")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sdist, wheel, problems = build(work)
        for constraints in options.constraints or [None]:
            name = "newest" if constraints is None else constraints.stem
            place = work / name
            python = install(options.python, place, wheel, options.extras, constraints)
            print(f"{name}: {run(python, '--version').strip()}, jaxllama[{options.extras}]")
            torch = "parity" in options.extras.split(",")
            readme = (ROOT / "README.md").read_text()
            problems += package_examples.failures(readme, python, torch)
            problems += as_from_wheel(python, sdist)
            for command in ("jaxllama", "parity"):
                run(python.parent / command, "--help", cwd=work)
            if options.sbom:
                problems += sbom.write(python, options.sbom / f"{name}.cdx.json")
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
