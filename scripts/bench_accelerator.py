"""What a GPU or TPU that is lent for minutes is used for, in the order of what matters.

First the verdict there, in three minutes: `parity run` of a small model and of SmolLM2. Then speed:
a model of 8B's shapes with random weights made on the device, in bfloat16, beside what the device
does at best: reading its memory, and one large product. Then verdicts at the default precision, and
the tests marked `gpu`. Each is a process of its own that ends when its time does, and what is done
is written at once: an end in the midst loses little.

    python scripts/bench_accelerator.py --json accelerator.json
    python scripts/bench_accelerator.py --rehearse      # on a CPU, with a small model
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllama import KVCache, Llama
from jaxllama.attention import Backend
from jaxllama.bench.floors import prefill_flops
from jaxllama.config import LlamaConfig
from jaxllama.generate import feed
from jaxllama.presets import PRESETS
from jaxllama.quantisation import step_bytes

ROOT = Path(__file__).parents[1]
ROUNDS, DTYPE, FORMS = 5, "bf16", ("stacked", "unrolled")
# What a form takes to compile and to be timed: less is too little to begin with it.
FORM_SECONDS = 90
# Attention as users get it, and in our blocks, where that is a kernel.
PREFILLS: dict[Backend, str] = {"xla": "prefill", "blockwise": "prefill_blocks"}
PARITY = [sys.executable, "-m", "parity", "run"]
BRIEF, DEFAULT = ["--scenario", "causal,right_padded"], ["--precision", "default"]
# What is aimed at, of what the device does at best.
TARGETS = {"decode_b1_vs_read": 0.85, "prefill_vs_product": 0.60}
REHEARSED = PRESETS["llama-3.2-1b"].replace(
    num_hidden_layers=2, vocab_size=2048, bos_token_id=1, eos_token_ids=(2,)
)


def median_seconds(function: Callable[[], Any]) -> float:
    """Return the median of some rounds, compiled before."""
    jax.block_until_ready(function())
    taken = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        jax.block_until_ready(function())
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def read_bytes_a_second(count: int) -> float:
    """Return how fast the device reads its memory, in bytes a second.

    Args:
        count: bytes that are read, far more than any cache holds.
    """
    held = jnp.ones((count // 2 // 4096, 4096), jnp.bfloat16)
    total = jax.jit(lambda x: jnp.max(x, axis=1).max())
    return held.nbytes / median_seconds(lambda: total(held))


def product_flops_a_second(size: int) -> float:
    """Return how fast the device multiplies bfloat16, in operations a second."""
    x = jnp.ones((size, size), jnp.bfloat16)
    multiply = jax.jit(lambda x, y: jnp.matmul(x, y, preferred_element_type=jnp.bfloat16))
    return 2 * size**3 / median_seconds(lambda: multiply(x, x))


def random_model(config: LlamaConfig, form: Any) -> Llama:
    """Return a model whose weights are made on the device."""
    return nnx.jit(lambda: Llama(config, dtype=DTYPE, form=form, rngs=nnx.Rngs(0)))()


def decode_seconds(model: Llama, prompt: int, steps: int) -> float:
    """Return what a step of writing takes, without the prompt's and the loop's beginning."""
    row = [[1] * prompt]

    def seconds(count: int) -> float:
        return median_seconds(
            lambda: model.generate(row, max_new_tokens=count, eos_ids=()).cache.lengths
        )

    return (seconds(steps + 8) - seconds(8)) / steps


def prefill_seconds(model: Llama, tokens: int, backend: Backend) -> float:
    """Return what reading a prompt takes, to the logits after it.

    Args:
        model: whose backend of attention is set to the one given.
        tokens: of the prompt.
        backend: `xla` is what users get: a kernel where one is chosen for it.
    """
    model.backend = backend
    ids = jnp.arange(tokens, dtype=jnp.int32)[None] % model.config.vocab_size
    cache = KVCache.empty(model.config, 1, tokens, DTYPE, apart=model.form != "stacked")

    @jax.jit
    def read(model: Llama, ids: Any, lengths: Any, cache: KVCache) -> Any:
        return feed(model, cache, ids, jnp.ones(ids.shape, bool), lengths)

    lengths = jnp.array([tokens], jnp.int32)
    return median_seconds(lambda: read(model, ids, lengths, cache)[0])


def run(words: list[str], limit: float) -> dict[str, Any]:
    """Return how a command of this project ended, and the end of what it said."""
    begun = time.perf_counter()
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        code, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        code, said = -1, f"{(late.stdout or b'')!r:.500} after {limit:.0f} s"
    seconds = time.perf_counter() - begun
    return {
        "command": " ".join(words[1:]),
        "exit_code": code,
        "seconds": seconds,
        "said": said[-1500:],
    }


def verdicts(small: bool) -> list[tuple[list[str], float]]:
    """Return the commands whose verdict is asked for first, and their limits in seconds."""
    found = [([*PARITY, "tiny"], 60.0)]
    return found if small else [*found, ([*PARITY, "smollm2", *BRIEF], 120.0)]


def later_verdicts(small: bool) -> list[tuple[list[str], float]]:
    """Return those that are asked for when speed is known, likewise."""
    found = [([*PARITY, "tiny", *DEFAULT], 60.0)]
    if not small:
        found += [([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/jaxllama"], 150.0)]
        found += [([*PARITY, "smollm2", *BRIEF, "--dtype", "f32", *DEFAULT], 60.0)]
    return found


def measured(
    config: LlamaConfig, small: bool, note: Callable[[str, Any], None], left: Callable[[], float]
) -> None:
    """Measure the device, then the model in both forms that suit it, while there is time."""
    reading = read_bytes_a_second((1 << 28) if small else (1 << 33))
    multiplying = product_flops_a_second(512 if small else 8192)
    note("read_gb_s", reading / 1e9)
    note("product_tflop_s", multiplying / 1e12)
    steps, tokens = (16, 128) if small else (128, 4096)
    for form in FORMS:
        if left() < FORM_SECONDS and not small:
            print(f"{form}: not begun, {left():.0f} s are left", flush=True)
            continue
        model = random_model(config, form)
        step = decode_seconds(model, 128, steps)
        note(f"{form}_decode_b1_tokens_s", 1 / step)
        note(f"{form}_decode_b1_vs_read", step_bytes(config, DTYPE) / reading / step)
        for backend, name in PREFILLS.items():
            prompt = prefill_seconds(model, tokens, backend)
            note(f"{form}_{name}_tokens_s", tokens / prompt)
            note(f"{form}_{name}_vs_product", prefill_flops(config, tokens) / multiplying / prompt)
        del model


def options() -> argparse.ArgumentParser:
    """Return what may be asked for."""
    known = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    known.add_argument("--json", type=Path, default=Path("accelerator.json"))
    known.add_argument("--seconds", type=float, default=720, help="that all of it may take")
    known.add_argument("--rehearse", action="store_true", help="a small model, on any device")
    known.add_argument("--speed", action="store_true", help="measure speed alone")
    return known


def speed_command(asked: argparse.Namespace, left: float) -> list[str]:
    """Return the command of the process that measures speed, into the same file."""
    words = [sys.executable, __file__, "--speed", "--json", str(asked.json.resolve())]
    return [*words, "--seconds", f"{left:.0f}", *["--rehearse"] * asked.rehearse]


class Findings:
    """What is known, in a file at once."""

    def __init__(self, path: Path, **known: Any) -> None:
        self.path, self.known = path, known

    def note(self, name: str, value: Any) -> None:
        """Write one more."""
        self.known[name] = value
        self.path.write_text(json.dumps(self.known, indent=2))
        if isinstance(value, float):
            print(f"{name}: {value:.4g}", flush=True)

    def ask(self, command: list[str], limit: float, left: float) -> None:
        """Run a command within its limit and what is left, and write how it ended."""
        if left < limit / 2:
            ended = {"command": " ".join(command[1:]), "exit_code": None, "seconds": 0.0}
            ended["said"] = f"not begun: {left:.0f} s are left"
        else:
            ended = run(command, min(limit, left))
            if self.path.exists():  # the command may have written to it
                self.known |= json.loads(self.path.read_text())
        print(f"[{ended['exit_code']}] {ended['seconds']:.0f} s {ended['command']}", flush=True)
        print("\n".join(ended["said"].splitlines()[:12]), flush=True)
        self.note("commands", [*self.known["commands"], ended])


def main(words: list[str]) -> int:
    """Do all of it; return 1 where a verdict or a target is missed."""
    known = options()
    asked, begun = known.parse_args(words), time.perf_counter()

    def left() -> float:
        return float(asked.seconds) - (time.perf_counter() - begun)

    if asked.speed:
        found = Findings(asked.json, **json.loads(asked.json.read_text()))
        config = REHEARSED if asked.rehearse else PRESETS["llama-3.1-8b"]
        measured(config, asked.rehearse, found.note, left)
        return 0
    # In a process of its own: a device's memory belongs to the first that asks for it.
    code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep=chr(10))"
    platform, kind = run([sys.executable, "-c", code], 120)["said"].strip().splitlines()[-2:]
    if platform == "cpu" and not asked.rehearse:
        known.error("JAX finds no GPU or TPU here; --rehearse tries the script on a CPU")
    found = Findings(asked.json, device=kind, jax=jax.__version__, commands=[])
    for command, limit in verdicts(asked.rehearse):
        found.ask(command, limit, left())
    found.ask(speed_command(asked, left()), left(), left())
    for command, limit in later_verdicts(asked.rehearse):
        found.ask(command, limit, left())
    best = {name: max(found.known.get(f"{form}_{name}", 0.0) for form in FORMS) for name in TARGETS}
    for name, target in TARGETS.items():
        print(f"{name}: {best[name]:.2f}, aimed at {target}")
    # At the default precision a device may round more than a verdict allows: told, not counted.
    judged = [one for one in found.known["commands"] if "--precision" not in one["command"]]
    missed = any(best[name] < target for name, target in TARGETS.items()) and not asked.rehearse
    return int(missed or any(one["exit_code"] != 0 for one in judged))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
