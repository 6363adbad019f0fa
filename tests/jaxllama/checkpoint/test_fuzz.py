"""Hostile files: see tests/support/checkpoint_fuzz.py for what is done to them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "support" / "checkpoint_fuzz.py"


def test_damaged_files_are_refused(tmp_path):
    run = subprocess.run([sys.executable, PROGRAM, tmp_path, "7"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads(run.stdout.splitlines()[-1])
    assert not result["wrong"], "\n".join(result["wrong"])
    total: Counter[str] = Counter()
    for row in result["counts"].values():
        total.update(row)
    assert sum(total.values()) >= 300
    # Most of the damage matters; some hits padding, a tokenizer's file, or a field nobody reads.
    assert total["refused"] + total["manifest"] > 0.8 * sum(total.values())
    assert len(result["counts"]) >= 40
