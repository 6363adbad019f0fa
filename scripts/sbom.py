"""Write an environment's bill of materials (CycloneDX JSON), and fail where it skips something.

Usage: sbom.py PYTHON FILE. PYTHON is the interpreter of an environment that has jaxllama. What is
installed is asked of pip, which shares nothing with the tool that writes the bill.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def canonical(name: str) -> str:
    """Return a distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(bill: Mapping[str, Any]) -> dict[str, str]:
    """Return what a bill lists, the main component too: versions by canonical name."""
    components = [*bill.get("components", ()), bill.get("metadata", {}).get("component")]
    return {canonical(one["name"]): one.get("version", "") for one in components if one}


def differences(bill: Mapping[str, Any], installed: Mapping[str, str]) -> list[str]:
    """Return where a bill and an environment differ: both ways, versions too."""
    said = listed(bill)
    here = {canonical(name): version for name, version in installed.items()}
    return (
        [
            f"{name} {here[name]}: installed, not in the bill"
            for name in sorted(here.keys() - said.keys())
        ]
        + [
            f"{name} {said[name]}: in the bill, not installed"
            for name in sorted(said.keys() - here.keys())
        ]
        + [
            f"{name}: version {said[name]!r} in the bill, {here[name]!r} installed"
            for name in sorted(here.keys() & said.keys())
            if here[name] != said[name]
        ]
    )


def write(python: Path, file: Path) -> list[str]:
    """Write the bill of an environment.

    Args:
        python: its interpreter.
        file: the JSON document; its folder is made.

    Returns:
        What was skipped, or is said wrongly.
    """
    pip = (python, "-m", "pip", "list", "--format=json")
    rows = json.loads(subprocess.run(pip, check=True, capture_output=True, text=True).stdout)
    file.parent.mkdir(parents=True, exist_ok=True)
    make = (sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible")
    subprocess.run(
        (*make, "--pyproject", PYPROJECT, "--mc-type", "library", "-o", file, python), check=True
    )
    bill = json.loads(file.read_text())
    found = differences(bill, {row["name"]: row["version"] for row in rows})
    licensed = sum("licenses" in one for one in bill["components"])
    print(f"{file}: {len(rows)} distributions, licence said of {licensed}")
    return [f"{file.name}: {line}" for line in found]


def main(arguments: list[str] | None = None) -> int:
    """Write the bill and say what is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    problems = write(options.python.absolute(), options.file)
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
