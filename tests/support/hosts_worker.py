"""What each process of `tests/jaxllama/sharding/test_hosts.py` does: `WORK FOLDER PORT INDEX`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import parity
from jaxllama import Llama, open_checkpoint
from jaxllama.checkpoint.hf import safetensors_file
from jaxllama.loss import next_token_loss
from jaxllama.masks import Tokens, causal, padding
from jaxllama.sharding.hosts import host_array, meet, several_hosts

MESH, OTHER_MESH = "data=2,tensor=2", "fsdp=4"
PROMPTS = [[1, 2, 3], [4, 5, 6, 7]]
TRAINED = np.array([[5, 9, 2, 77, 31, 8], [3, 3, 120, 6, 7, 7]], np.int32)
TRACE = {"scenarios": "right_padded", "length": 12, "dtypes": "f64", "modes": "free,decode"}


@jax.jit
def step(model: Llama, tokens: jax.Array) -> tuple[jax.Array, Llama]:
    """Return the loss, and the model after one step of gradient descent."""
    described = Tokens.contiguous(jnp.array([6, 4], jnp.int32), tokens.shape[1])
    mask = (causal() & padding()).bind(described, described)

    def loss(model: Llama) -> jax.Array:
        logits, _ = model(tokens, positions=described.positions, mask=mask)
        return next_token_loss(logits, tokens, valid=described.valid)

    value, gradients = jax.value_and_grad(loss)(model)
    graph, weights = nnx.split(model)
    slopes = nnx.split(gradients)[1]
    return value, nnx.merge(graph, jax.tree.map(lambda w, g: w - 0.01 * g, weights, slopes))


def counted(checkpoint: Path, mesh: str | None) -> tuple[Llama, int]:
    """Return a loaded model, and the bytes of weights that this process has read for it."""
    read: list[int] = []
    read_into = safetensors_file.read_into

    def counting(file: Any, offset: int, raw: np.ndarray) -> None:
        read.append(raw.size)
        read_into(file, offset, raw)

    safetensors_file.read_into = counting
    model = Llama.from_pretrained(checkpoint, dtype="f64", mesh=mesh, form="stacked")
    safetensors_file.read_into = read_into
    return model, sum(read)


def whole(checkpoint: Path, folder: Path, mesh: str | None, other: str | None) -> dict[str, Any]:
    """Load, generate, train a step, save, restore onto another mesh, capture."""
    model, read = counted(checkpoint, mesh)
    parts = None if other is None else counted(checkpoint, other)[1]
    written = model.generate(PROMPTS, max_new_tokens=8, eos_ids=())
    first, model = step(model, jnp.asarray(TRAINED))
    if mesh is not None:
        model.save_pretrained(folder / "trained", format="orbax", tokenizer=checkpoint)
        model = Llama.from_pretrained(folder / "trained", dtype="f64", mesh=other, form="unrolled")
    second, _ = step(model, jnp.asarray(TRAINED))
    parity.capture(checkpoint, folder / "traces", mesh=mesh, **TRACE)
    return {
        "tokens": written.tokens.tolist(),
        "losses": [float(host_array(one)) for one in (first, second)],
        "bytes": [read, open_checkpoint(checkpoint).nbytes, parts],
        "devices": [jax.device_count(), jax.local_device_count()],
    }


def forever(checkpoint: Path, folder: Path) -> None:
    """Train and save until somebody puts an end to it."""
    model = Llama.from_pretrained(checkpoint, dtype="f64", mesh=MESH, form="stacked")
    for number in range(1000):
        _, model = step(model, jnp.asarray(TRAINED))
        model.save_pretrained(folder / f"step-{number}", format="orbax", tokenizer=checkpoint)
        print(f"saved {number}", flush=True)


def main() -> None:
    """Do the work that is asked for."""
    jax.config.update("jax_enable_x64", True)
    work, folder, port, index = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    with several_hosts(f"localhost:{port},{index}/2"):
        if work == "whole":
            found = whole(folder / "hf", folder, MESH, OTHER_MESH)
            (folder / f"found-{index}.json").write_text(json.dumps(found))
        elif work == "forever":
            forever(folder / "hf", folder)
        elif work == "idle":  # no operation between processes is under way
            print("saved nothing", flush=True)
            meet(f"nobody else comes here: {index}", seconds=600)


if __name__ == "__main__":
    main()
