"""Run one peer, in the environment that this process has, on every configuration; print JSON.

    python scripts/field/run_peer.py tunix OUTPUT.json [--configs llama-3,smollm2]

`scripts/field_report.py` calls it with the peer's own packages first on the path.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import configs
import mends
from adapter_lines import lines_of

import parity
from jaxllama.checkpoint import Checkpoint
from jaxllama.errors import JaxLlamaError
from parity.report.wording import cause_lines, divergence_lines, headline
from parity.result import Result
from parity.scenarios import DEFAULT_SCENARIOS
from parity.subjects.select import FromCheckpoint

# What a column of the report is, and the modes of a run that it is made of.
COLUMNS = {"forward": ("free", "isolated"), "decode": ("decode",), "gradients": ("grad",)}
# Tokens a row; trained weights have thirty layers to pass.
LENGTHS = {"smollm2": 19}
SHORT = 37


def main() -> None:
    """Run the peer that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer")
    parser.add_argument("output", type=Path)
    parser.add_argument("--configs", default=",".join(configs.WHAT))
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    adapter = importlib.import_module(module_of(given.peer))
    found: dict[str, Any] = {
        "peer": given.peer,
        "requirement": adapter.REQUIREMENT,
        "versions": versions(adapter.REQUIREMENT),
        "lines": lines_of(Path(str(adapter.__file__)).read_text()),
        "about": str(adapter.__doc__).strip(),
        "runs": [],
    }
    if given.output.exists():
        earlier = json.loads(given.output.read_text())
        wanted = given.configs.split(",")
        found["runs"] = [one for one in earlier.get("runs", []) if one["config"] not in wanted]
    for name in given.configs.split(","):
        found["runs"].append(on_config(given.peer, adapter, name))
        found["runs"].sort(key=lambda one: list(configs.WHAT).index(one["config"]))
        given.output.write_text(json.dumps(found, indent=1) + "\n")


def module_of(peer: str) -> str:
    """Return the adapter's module by the peer's name.

    >>> module_of("keras-hub")
    'parity.subjects.adapters.peers.keras_hub'
    """
    return f"parity.subjects.adapters.peers.{peer.replace('-', '_')}"


def versions(requirement: str) -> dict[str, str]:
    """Return the releases that a run had, those of what it stands on among them."""
    names = (
        requirement.partition("==")[0],
        "jax",
        "flax",
        "keras",
        "torch",
        "transformers",
        "numpy",
    )
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def on_config(peer: str, adapter: Any, name: str) -> dict[str, Any]:
    """Run a peer on one configuration, and again mended where it differs."""
    checkpoint = configs.checkpoint(name)
    facts: dict[str, Any] = {"config": name, **run_once(adapter, checkpoint, name)}
    if facts.get("verdict") == "divergent":
        mend = mends.mended(peer, checkpoint)
        if mend is not None:
            said, context = mend
            facts["mended"] = {"what": said, **run_once(adapter, checkpoint, name, context)}
    return facts


def run_once(
    adapter: Any, checkpoint: Checkpoint, name: str, context: Any = None
) -> dict[str, Any]:
    """Run a peer once.

    Args:
        adapter: its module.
        checkpoint: what to run.
        name: of the configuration.
        context: what it is run in; nothing if None.
    """
    scenarios: Sequence[str] = getattr(adapter, "SCENARIOS", DEFAULT_SCENARIOS)
    if name == "smollm2":  # positions past 8192 are none of this model's
        scenarios = [one for one in scenarios if one != "long_positions"]
    began = time.monotonic()
    with context or nullcontext():
        try:
            made = adapter.subject(checkpoint, "f32")
            modes = [
                mode
                for mode, wanted in (
                    ("free", None),
                    ("isolated", None if made.can_force else "no"),
                    ("decode", "start_decode"),
                    ("grad", "start_grad"),
                )
                if wanted is None or hasattr(made, wanted)
            ]
            result = parity.run(
                checkpoint,
                subject=FromCheckpoint(adapter.subject),
                dtypes="f32",
                modes=modes,
                # In another order than the default's, which gradients would take for no choice.
                scenarios=list(reversed(scenarios)),
                length=LENGTHS.get(name, SHORT),
            )
        except (JaxLlamaError, ValueError, AssertionError, AttributeError, TypeError) as error:
            return {"error": f"{type(error).__name__}: {error}"[:600]}
    return facts_of(result) | {"scenarios": list(scenarios), "seconds": time.monotonic() - began}


def facts_of(result: Result) -> dict[str, Any]:
    """Return what the report says of a run."""
    facts: dict[str, Any] = {
        "verdict": result.verdict,
        "headline": headline(result),
        "compared": result.compared,
        "expected": result.expected,
        "absent": list(result.absent),
        "unmatched": list(result.unmatched),
    }
    for column, modes in COLUMNS.items():
        rows = [row for row in result.rows if row.mode in modes]
        facts[column] = (
            None if not rows else "equal" if all(row.passed for row in rows) else "divergent"
        )
    if result.first_divergence is not None:
        row = result.first_divergence.row
        facts["first"] = {
            "tap": row.tap,
            "scenario": row.scenario,
            "mode": row.mode,
            "error": row.error,
            "noise": row.noise,
            "lines": list(divergence_lines(result.first_divergence, result)),
        }
    if result.cause is not None:
        document = result.cause.to_dict()
        facts["cause"] = {
            "confirmed": document["confirmed"],
            "named": [
                {key: one[key] for key in ("id", "title", "effective", "configured")}
                for one in (document, *document["others"])
            ],
            "lines": list(cause_lines(result)),
        }
    return facts


if __name__ == "__main__":
    main()
