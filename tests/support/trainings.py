"""Small trainings for tests: `tiny` on a page of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxllama.train import TrainConfig, TrainingRun
from jaxllama.train.data import digest_of

TEXTS = [f"{word} follows {i}, and nothing else does. " * 3 for i, word in enumerate("abcdefghij")]


def settings(folder: Path, **changed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of a training in a folder, sections changed or added."""
    text = folder / "page.jsonl"
    if not text.exists():
        text.write_text("".join(f'{{"text": "{one}"}}\n' for one in TEXTS))
    made: dict[str, dict[str, Any]] = {
        "model": {"checkpoint": "tiny"},
        "data": {"files": [str(text)], "length": 40, "batch": 4},
        "optimiser": {"learning_rate": 2e-3, "warmup": 2, "weight_decay": 0.1, "clip": 1.0},
        "run": {"output": str(folder / "out"), "steps": 8},
    }
    for section, values in changed.items():
        made[section] = made.get(section, {}) | values
    return made


def config(folder: Path, **changed: dict[str, Any]) -> TrainConfig:
    """Return a training, given as for `settings`."""
    return TrainConfig.from_dict(settings(folder, **changed))


def digest(run: TrainingRun) -> str:
    """Return what tells a run's rows from others."""
    return digest_of(run.rows)


def toml(given: dict[str, dict[str, Any]]) -> str:
    """Return settings as a file has them: JSON's values are TOML's here."""
    lines: list[str] = []
    for section, values in given.items():
        lines += [f"[{section}]", *(f"{name} = {json.dumps(v)}" for name, v in values.items())]
    return "\n".join(lines) + "\n"
