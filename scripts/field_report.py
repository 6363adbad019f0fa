"""Run every published Llama that installs here, and write `docs/field/`.

    python scripts/field_report.py [PEER ...] [--configs llama-3.1,smollm2] [--environments DIR]
    python scripts/field_report.py --pages    # docs/field/*.md anew, of the JSON that is there

A peer's environment is a folder of packages, those of `scripts/field/PEER.txt`, put first on the
path of the Python that runs this, which has `.[parity]`: their pins clash with each other's, and
with ours. What does not install is written down with its command and its error.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts" / "field"))

import pages  # noqa: E402

PEERS = (
    "tunix",
    "keras-hub",
    "skyrl",
    "torchax",
    "transformers",
    "transformers-compiled",
    "litgpt",
    "torchtune",
    "easydel",
    "maxtext",
)
FIELD = ROOT / "docs" / "field"


def main() -> None:
    """Install, run, write down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peers", nargs="*", metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--configs", help="some of them alone; the others' results are kept")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "field")
    parser.add_argument("--pages", action="store_true", help="run nothing, write the pages anew")
    given = parser.parse_args()
    if unknown := sorted(set(given.peers) - set(PEERS)):
        parser.error(f"peer {unknown[0]!r}: expected {', '.join(PEERS)}")
    FIELD.mkdir(parents=True, exist_ok=True)
    for peer in () if given.pages else given.peers or PEERS:
        environment = given.environments / peer
        failure = installed(peer, environment)
        if failure is None:
            failure = ran(peer, environment, given.configs)
        if failure is not None:
            record = {"peer": peer, **failure}
            (FIELD / f"{peer}.json").write_text(json.dumps(record, indent=1) + "\n")
        print(f"{peer}: {'not run' if failure else 'run'}", flush=True)
    pages.write(FIELD)


def requirements(peer: str) -> list[str]:
    """Return what a peer's requirements file asks for."""
    lines = (ROOT / "scripts" / "field" / f"{peer}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def installed(peer: str, environment: Path) -> dict[str, Any] | None:
    """Put a peer's packages into a folder; return the command and its error where that fails."""
    if not requirements(peer) or environment.exists():
        return None
    words = ["pip", "install", "--no-deps", "--no-compile", "-q", "--target"]
    file = f"scripts/field/{peer}.txt"
    command = [sys.executable, "-m", *words, str(environment), "-r", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    shown = ["python", "-m", *words, f"build/field/{peer}", "-r", file]
    return {"command": shlex.join(shown), "error": errors or done.stderr.splitlines()[-3:]}


def ran(peer: str, environment: Path, configs: str | None) -> dict[str, Any] | None:
    """Run a peer; return the command and its error where that fails."""
    output = FIELD / f"{peer}.json"
    command = ["scripts/field/run_peer.py", peer, str(output)]
    command += ["--configs", configs] if configs else []
    path = os.pathsep.join([str(environment), str(ROOT)])
    settings = os.environ | {"PYTHONPATH": path, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return {"command": f"python scripts/field_report.py {peer}", "error": said[-1:]}


if __name__ == "__main__":
    main()
