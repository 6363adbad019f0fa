"""How small a fault `parity run` still finds: a table of the smallest, a kind at a time.

A kind of fault has degrees, from gross to next to nothing. Each probe puts one degree into the JAX
side alone and asks `parity.run` for its verdict in one dtype; bisection finds the smallest degree
that is called divergent, and the next smaller one, which is not. Run before and after a change of
tolerances or noise, it shows what that change no longer sees:

    python scripts/smallest_faults.py --json before.json
    python scripts/smallest_faults.py --table before.json after.json   # as Markdown

Bisection takes for granted that of two degrees the larger is easier to find. Near a threshold
rounding may help a fault or hide it, so a step of one degree between two tables says nothing.

Shapes: i input features (K of them in one sum), o output features, t tokens.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import parity
from jaxllama import model as llama
from jaxllama.checkpoint import Checkpoint, in_memory, load_model, tiny
from parity.selftest.fault import Fault, FaultySubject, Patches, Weights, in_layer, nth_calls
from parity.selftest.faulty_attention import attention_patches_in, softmax

LENGTH = 23
LANES = ("f64", "f32", "bf16")
Q, DOWN, HEAD = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "lm_head.weight",
)


@cache
def checkpoint(name: str) -> Checkpoint:
    """Return a random model with large-variance weights.

    `base` has SmolLM2's sizes of sums: 576 terms in q_proj and lm_head, 1536 in down_proj; `long`
    has 128 and 4096. `quiet` is `base` with embeddings of a root mean square of 0.125, as SmolLM2's
    0.136, in place of 8: next to 8 an eps is nothing in float32.
    """
    sizes = {"hidden_size": 128, "intermediate_size": 4096, "num_hidden_layers": 1}
    if name != "long":
        sizes |= {"hidden_size": 576, "intermediate_size": 1536}
    made = tiny(seed=11, **sizes)
    if name == "quiet":
        embedding = made.reader("model.embed_tokens.weight")
        embedding *= np.float32(2.0**-6)  # exact; nobody else has this copy
    return made


@dataclass(frozen=True)
class Kind:
    """One kind of fault and its degrees.

    Attributes:
        name: what is wrong, and where.
        degrees: from gross to next to nothing.
        said: a degree in words.
        fault: makes what a degree replaces of `Fault()`'s arguments.
        model: which checkpoint it is put into.
        lanes: where it can make a difference.
    """

    name: str
    degrees: Sequence[int]
    said: Callable[[int], str]
    fault: Callable[[int], dict[str, Any]]
    model: str = "base"
    lanes: tuple[str, ...] = LANES


@dataclass(frozen=True)
class Smallest:
    """The smallest degree found of one kind in one dtype.

    Attributes:
        kind, lane: of what.
        found: in words; empty if not even the gross fault is.
        missed: the next smaller degree; empty if the smallest there is was found.
        where: the tap and mode the verdict names for `found`.
        problem: why there is nothing to be said: the clean twin is not equal.
    """

    kind: str
    lane: str
    found: str = ""
    missed: str = ""
    where: str = ""
    problem: str = ""


def kinds() -> list[Kind]:
    """Return every kind of fault."""
    weights = [
        Kind(f"one weight of {_short(name)}, relative", range(53), _power, _one_weight(name))
        for name in (Q, DOWN, HEAD)
    ]
    for name in (Q, DOWN, HEAD):
        terms = checkpoint("base").tensors[name].shape[1]
        weights += [
            Kind(
                f"elements of a row of {_short(name)} in bf16",
                _halved(terms),
                _share(terms),
                _rounded_elements(name),
                lanes=("f64", "f32"),
            ),
            Kind(
                f"one row of {_short(name)} rounded",
                range(8, 24),
                lambda bits: f"{bits} bits",
                _rounded_row(name),
                lanes=("f64", "f32"),
            ),
        ]
    products = [
        Kind(
            f"products in {said}, K = {shape[1]}",
            _halved(shape[0] * shape[1]),
            _products_of(*shape),
            _narrow_products(tap, model, narrow),
            model=model,
            lanes=("f32",),
        )
        for said, narrow in (("TF32", _tf32), ("three-pass bf16", _three_pass))
        for model, tap in (("long", Q), ("base", Q), ("base", DOWN), ("long", DOWN))
        for shape in [checkpoint(model).tensors[tap].shape]
    ]
    others = [
        Kind("norm eps, relative", range(-16, 53), _power, _config("rms_norm_eps"), model="quiet"),
        Kind("rope theta, relative", range(53), _power, _config("rope_theta")),
        Kind("probability on a hidden key", range(1, 1023), _power, _leaked, lanes=("f64",)),
        Kind("probability on a hidden key", range(1, 127), _power, _leaked, lanes=("f32", "bf16")),
        Kind("probability moved to another key", range(1, 60), _power, _moved),
        Kind("attention scale, relative", range(53), _power, _scaled),
    ]
    return [*weights, *products, *others]


def _short(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _power(k: int) -> str:
    return f"2^{-k}"


def _halved(most: int) -> list[int]:
    """Return most, most / 2, ... 1, rounded down."""
    return [most >> k for k in range(most.bit_length())]


def _share(most: int) -> Callable[[int], str]:
    return lambda n: f"{n} of {most}"


def _products_of(out: int, terms: int) -> Callable[[int], str]:
    def said(n: int) -> str:
        if n >= terms:
            return f"{n / terms:.3g} of {out} columns"
        return f"{n} of one column's {terms}"

    return said


def _one_weight(name: str) -> Callable[[int], dict[str, Any]]:
    """Change the largest weight of a tensor."""

    def change(k: int, weights: Weights) -> None:
        weights[name].reshape(-1)[np.abs(weights[name]).argmax()] *= 1 + 2.0**-k

    return lambda k: {"weights": partial(change, k)}


def _row(weight: np.ndarray) -> np.ndarray:
    """Return the row that the largest weight stands in, as a view."""
    return weight[np.unravel_index(np.abs(weight).argmax(), weight.shape)[0]]


def _bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Round to so many significant bits."""
    exponent = np.frexp(values)[1] - bits
    return np.ldexp(np.round(np.ldexp(values, -exponent)), exponent)


def _rounded_elements(name: str) -> Callable[[int], dict[str, Any]]:
    """Round those elements of a row that this moves most."""

    def change(n: int, weights: Weights) -> None:
        row = _row(weights[name])
        rounded = _bits(row, 8)
        places = np.argsort(-np.abs(rounded - row))[:n]
        row[places] = rounded[places]

    return lambda n: {"weights": partial(change, n)}


def _rounded_row(name: str) -> Callable[[int], dict[str, Any]]:
    def change(bits: int, weights: Weights) -> None:
        row = _row(weights[name])
        row[:] = _bits(row, bits)

    return lambda bits: {"weights": partial(change, bits)}


Narrow = Callable[[jax.Array, jax.Array], jax.Array]


def _wide_product(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum("...i,oi->...o", x.astype(jnp.float64), w.astype(jnp.float64))


def _tf32(x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiply factors of 11 significant bits."""
    return _wide_product(*(jax.lax.reduce_precision(a, 8, 10) for a in (x, w)))


def _three_pass(x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiply bfloat16 halves, high with high, high with low, low with high."""
    high = [jax.lax.reduce_precision(a, 8, 7) for a in (x, w)]
    low = [jax.lax.reduce_precision(a - h, 8, 7) for a, h in zip((x, w), high, strict=True)]
    return (
        _wide_product(high[0], high[1])
        + _wide_product(high[0], low[1])
        + _wide_product(low[0], high[1])
    )


def _narrow_products(name: str, model: str, narrow: Narrow) -> Callable[[int], dict[str, Any]]:
    """Multiply in fewer bits for the first n of a tensor's weights, an output after another.

    What that changes is added to the model's own product, so that nothing else differs.
    """
    call = {Q: 0, DOWN: 6}[name]  # a layer multiplies for q, k, v, o, gate, up, down
    shape = checkpoint(model).tensors[name].shape
    original = llama.Linear.__call__

    def patches(n: int) -> Patches:
        chosen = (np.arange(np.prod(shape)) < n).reshape(shape)

        def linear(self: Any, x: jax.Array) -> jax.Array:
            w = jnp.where(chosen, self.weight[...].astype(x.dtype), jnp.zeros((), x.dtype))
            error = narrow(x, w) - _wide_product(x, w)
            return (original(self, x).astype(jnp.float64) + error).astype(x.dtype)

        # Made anew for each stage, since it counts the calls.
        return in_layer(
            0, lambda _: [(llama.Linear, "__call__", nth_calls(original, linear, call))]
        )

    return lambda n: {"patches": patches(n)}


def _config(field: str) -> Callable[[int], dict[str, Any]]:
    def change(k: int) -> dict[str, Any]:
        return {"config": lambda c: c.replace(**{field: float(getattr(c, field) * (1 + 2.0**-k))})}

    return change


# The query whose probabilities are wrong, in one head of one row; the key after it is hidden.
QUERY = 11


def _leaked(k: int) -> dict[str, Any]:
    def weigh(scores: jax.Array, visible: jax.Array) -> jax.Array:
        return softmax(scores, visible).at[0, 3, QUERY, QUERY + 1].set(2.0**-k)

    return {"patches": attention_patches_in(0, weigh=weigh)}


def _moved(k: int) -> dict[str, Any]:
    def weigh(scores: jax.Array, visible: jax.Array) -> jax.Array:
        """Move a part of the largest probability to a key that has next to none."""
        weights = softmax(scores, visible)
        row = weights[0, 3, QUERY, : QUERY + 1]
        most, least = jnp.argmax(row), jnp.argmin(row)
        part = row[most] * jnp.asarray(2.0**-k, row.dtype)
        return weights.at[0, 3, QUERY, most].add(-part).at[0, 3, QUERY, least].add(part)

    return {"patches": attention_patches_in(0, weigh=weigh)}


def _scaled(k: int) -> dict[str, Any]:
    return {"patches": attention_patches_in(0, scale=lambda scale: scale * (1 + 2.0**-k))}


def judge(model: str, lane: str, fault: dict[str, Any] | None) -> tuple[str, str]:
    """Ask for the verdict on a fault, or on the clean twin if None.

    Returns:
        The verdict, and the tap and mode at which the difference begins.
    """
    with jax.enable_x64(True):
        faulty = subject(model, lane, fault or {})
    result = parity.run(
        checkpoint(model), subject=faulty, dtypes=lane, scenarios="causal", length=LENGTH
    )
    first = result.first_divergence
    return result.verdict, "" if first is None else f"{first.row.tap} {first.row.mode}"


def subject(model: str, lane: str, fault: dict[str, Any]) -> FaultySubject:
    """Return the JAX side with a fault; changed weights are held in float64, to change by 2^-52."""
    source = checkpoint(model)
    described = dict.fromkeys(("family", "kind", "variant", "expected"), "")
    made = FaultySubject(source, lane, Fault(**described, **(fault | {"weights": None})))
    if "weights" in fault:
        weights = {name: source.read(name).astype(np.float64) for name in source.tensors}
        fault["weights"](weights)
        changed = in_memory(made.model.config, weights)
        made.model = load_model(changed, dtype=made.model.dtype, param_dtype=jnp.float64)
    return made


def smallest(kind: Kind, lane: str) -> Smallest:
    """Find the smallest degree that is called divergent."""
    where: dict[int, str] = {}

    def found(place: int) -> bool:
        verdict, tap = judge(kind.model, lane, kind.fault(kind.degrees[place]))
        where[place] = tap
        return verdict == "divergent"

    last = len(kind.degrees) - 1
    if not found(0):
        return Smallest(kind.name, lane, missed=kind.said(kind.degrees[0]))
    if found(last):
        return Smallest(kind.name, lane, kind.said(kind.degrees[last]), where=where[last])
    low, high = 0, last  # found, not found
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if found(middle) else (low, middle)
    seen, unseen = (kind.said(kind.degrees[place]) for place in (low, high))
    return Smallest(kind.name, lane, seen, unseen, where[low])


def measure(chosen: Sequence[Kind], lanes: Sequence[str], console: Console) -> list[Smallest]:
    """Find the smallest of every kind in every dtype, the clean twin first."""
    clean = cache(lambda model, lane: judge(model, lane, None))
    rows = []
    for lane in lanes:
        for kind in chosen:
            if lane not in kind.lanes:
                continue
            verdict, where = clean(kind.model, lane)
            if verdict != "equal":
                row = Smallest(kind.name, lane, problem=f"clean twin is {verdict} {where}".strip())
            else:
                row = smallest(kind, lane)
            console.print(f"{lane} {kind.name}: {_cell(row)}", highlight=False)
            rows.append(row)
    return rows


def facts() -> dict[str, Any]:
    """Return where and how this was measured."""
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "processor": models[0].partition(":")[2].strip() if models else platform.processor(),
        "torch_instructions": torch.backends.cpu.get_cpu_capability(),
        "settings": {n: os.environ[n] for n in ("XLA_FLAGS", "OMP_NUM_THREADS") if n in os.environ},
        "versions": {"jax": jax.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "tokens": LENGTH,
    }


def _cell(row: Smallest) -> str:
    if row.problem:
        return row.problem
    return row.found or f"none, not even {row.missed}"


def table(rows: Sequence[Smallest]) -> Table:
    """Return the rows for a terminal of 80 columns."""
    made = Table(title="the smallest fault found", title_justify="left", box=None)
    for column in ("fault", "dtype", "found", "not found", "shown at"):
        made.add_column(column, overflow="fold", no_wrap=column == "dtype")
    for row in rows:
        found = row.problem or row.found or "none"
        where = row.where.removeprefix("layers.0.").replace(" isolated", ", isolated")
        made.add_row(row.kind, row.lane, found, row.missed, where.removesuffix(" free"))
    return made


def markdown(documents: Sequence[dict[str, Any]]) -> str:
    """Return one or two measurements as a table, kinds by dtypes; the second one's are `after`."""
    names = ("before", "after")
    cells: dict[str, dict[tuple[str, int], str]] = {}
    for place, document in enumerate(documents):
        for values in document["rows"]:
            row = Smallest(**values)
            cells.setdefault(row.kind, {})[row.lane, place] = _cell(row)
    lanes = [lane for lane in LANES if any((lane, 0) in seen for seen in cells.values())]
    heads = [f"{lane} {name}" for lane in lanes for name in names]
    lines = [f"| fault | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for kind, seen in cells.items():
        told = [seen.get((lane, place), "") for lane in lanes for place in range(len(names))]
        lines.append(f"| {kind} | {' | '.join(told)} |")
    for name, document in zip(names, documents, strict=False):
        where = document["facts"]
        settings = " ".join(f"{k}={v}" for k, v in where["settings"].items())
        versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items())
        lines += [
            "",
            f"*{name}*: {where['date']}, commit {where['commit']}, {where['processor']} (PyTorch: "
            f"{where['torch_instructions']}), {versions}: `{settings} {where['command']}`",
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and print, or print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dtype", default=",".join(LANES), help="f64, f32, bf16, with commas")
    parser.add_argument("--kind", default="", help="only kinds with this in their name")
    parser.add_argument("--json", type=Path, help="write what was measured here")
    parser.add_argument("--table", type=Path, nargs="+", help="print these JSON files as Markdown")
    arguments = parser.parse_args()
    if arguments.table:
        print(markdown([json.loads(path.read_text()) for path in arguments.table]), end="")
        return 0
    torch.set_num_threads(1)  # on matrices this small, threads wait for each other
    chosen = [kind for kind in kinds() if arguments.kind in kind.name]
    rows = measure(chosen, arguments.dtype.split(","), Console(stderr=True))
    if arguments.json:
        document = {"facts": facts(), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    Console().print(table(rows))
    return 1 if any(row.problem for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
