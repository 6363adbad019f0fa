"""What loading takes of memory, measured by the system in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxllama.checkpoint import convert, tiny

ROOT = Path(__file__).parents[3]
# After a first load, which brings what is loaded once: code, and a compiled program or two.
PROGRAM = """
import json, sys
from pathlib import Path
import jax
from flax import nnx
from jaxllama import Llama, open_checkpoint

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

small, large, form, keep = *sys.argv[1:4], sys.argv[4] == "keep"
kept = [Llama.from_pretrained(small, dtype="f32", form=form)]
before = kilobytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forgets the most
opened = open_checkpoint(large)
kept += [opened.read(name) for name in opened.tensors if keep]
kept.append(Llama.from_pretrained(opened, dtype="f32", form=form))
taken = 1024 * (kilobytes("VmHWM") - before)
arrays = [array.nbytes for array in jax.tree.leaves(nnx.state(kept[-1]))]
print(json.dumps([taken, sum(arrays), max(arrays)]))
"""


# Pages of the allocators, and what the process does meanwhile: 3 to 7 MB were seen.
PROCESS_BYTES = 12_000_000


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two: of kilobytes, and of some 120 MB, of which no tensor is large."""
    folder = tmp_path_factory.mktemp("memory")
    large = tiny(num_hidden_layers=8, hidden_size=512, intermediate_size=1792, vocab_size=2048)
    for name, made in (("small", tiny()), ("large", large)):
        convert(made, folder / name, to="hf")
    return folder / "small", folder / "large"


@pytest.mark.parametrize(
    ("form", "keep"), [("stacked", ""), ("unrolled", ""), ("fused", ""), ("fused", "keep")]
)
def test_loading_takes_the_weights_and_two_arrays(
    checkpoints: tuple[Path, Path], form: str, keep: str
) -> None:
    """Of the model's own, of which layers are one where they are stacked. Negative control: a host
    that keeps what it has read."""
    small, large = checkpoints
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(small), str(large), form, keep],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    taken, weights, largest = json.loads(done.stdout)
    assert weights > 90e6 and (taken <= weights + 2 * largest + PROCESS_BYTES) == (not keep)
