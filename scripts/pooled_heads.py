"""Train a small model with as many key heads as query heads, pool them, and train on: the quality.

    python scripts/pooled_heads.py

Some minutes. Five of the texts of docs/health-experiment-texts.jsonl are trained on, the other two
foretold. docs/kv-heads.md has what it prints.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from health_experiment import SIZES, TEXTS, start

import parity
from jaxllama.checkpoint import convert
from jaxllama.train import train
from jaxllama.train.config import TrainConfig

HEADS = 4
HELD_OUT = 2
PIECE = 200  # letters of an example
# What is trained on after pooling, as a share of the first training: Ainslie et al. 2023.
SHARE = 0.05


def split(folder: Path) -> tuple[Path, Path]:
    """Write the texts to train on and the examples to foretell."""
    texts = [json.loads(line)["text"] for line in TEXTS.read_text().splitlines()]
    held = "".join(texts[-HELD_OUT:])
    pieces = [held[at : at + PIECE] for at in range(0, len(held) - PIECE, PIECE)]
    for name, rows in (("train.jsonl", texts[:-HELD_OUT]), ("held-out.jsonl", pieces)):
        lines = (json.dumps({"text": row}) + "\n" for row in rows)
        (folder / name).write_text("".join(lines))
    return folder / "train.jsonl", folder / "held-out.jsonl"


def trained(checkpoint: Path, texts: Path, output: Path, steps: int, rate: float) -> Path:
    """Return a checkpoint trained on."""
    sections: dict[str, dict[str, Any]] = {
        "model": {"checkpoint": str(checkpoint)},
        "data": {"files": [str(texts)], "length": 128, "batch": 8, "seed": 0},
        "optimiser": {"learning_rate": rate, "warmup": min(20, steps // 4), "clip": 1.0},
        "run": {"output": str(output), "steps": steps},
    }
    done = train(TrainConfig.from_dict(sections))
    assert done.model is not None
    return done.model


def line(stage: str, before: Path, after: Path, data: Path) -> str:
    """Return a row of the table: the perplexity after, its change and what may be said of it."""
    (found,) = parity.measure_quality(after, data, baseline=before).measures
    assert found.interval is not None and found.change is not None
    low, high = found.interval.low, found.interval.high
    return (
        f"{stage:<34} {found.after:10.3f} {found.change:+9.3f}  "
        f"{low:+.3f} to {high:+.3f}  {found.verdict}"
    )


def main(args: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=3e-3)
    given = parser.parse_args(args)
    more = max(round(SHARE * given.steps), 1)
    print(f"{'':<34} perplexity    change  interval")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts, data = split(folder)
        untrained = start(SIZES["small"].replace(num_key_value_heads=HEADS), 0, folder)
        mha = trained(untrained, texts, folder / "mha", given.steps, given.rate)
        print(line(f"MHA, {HEADS} key heads, {given.steps} steps", mha, mha, data))
        longer = trained(mha, texts, folder / "longer", more, given.rate / 3)
        print(line(f"  {more} steps more", mha, longer, data))
        for heads in (HEADS // 2, 1):
            pooled = convert(mha, folder / f"pooled-{heads}", to="hf", kv_heads=heads).target
            print(line(f"pooled to {heads} key head{'s' * (heads > 1)}", mha, pooled, data))
            on = trained(pooled, texts, folder / f"on-{heads}", more, given.rate / 3)
            print(line(f"  {more} steps more", mha, on, data))


if __name__ == "__main__":
    main()
