"""Models made to fail in one place: is each found there, under its right name?

Each failure is put into one layer of `tiny` and of SmolLM2, by its weights or by what the layer
computes, and `parity.check_health` is asked. It is named where the expected finding is the first
of the errors and warnings in the order of layers; others may follow downstream, and are told of.

    python scripts/made_to_fail.py --json docs/made-to-fail.json [--checkpoint tiny smollm2]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from unhealthy import Edited, leaking, on_column, one_vector, scaled

import parity
from jaxllama.checkpoint import Checkpoint, open_checkpoint
from jaxllama.errors import InputError
from parity.health.report import HealthReport

LENGTH = 64
# Queries before which nobody looks are too few to be told from a sink.
HEAD, COLUMN, QUERY, KEY = 1, 9, 20, 41
OUT = ("self_attn.o_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Failure:
    """One failure in one layer.

    Attributes:
        name: what is done.
        rules: any of these is its name.
        heads: that it is in; None for all of them, empty where it is the layer's.
        check: asks for the health of a checkpoint with it in a layer.
    """

    name: str
    rules: tuple[str, ...]
    heads: tuple[int, ...] | None
    check: Callable[[Checkpoint, int], HealthReport]


def _weights(factor: float, *parts: str, gradients: bool = False) -> Any:
    def check(checkpoint: Checkpoint, layer: int) -> HealthReport:
        changed = scaled(factor, *parts, layer=layer, of=checkpoint)
        return parity.check_health(changed, length=LENGTH, gradients=gradients)

    return check


def _computed(tap: str, edit: Any) -> Any:
    def check(checkpoint: Checkpoint, layer: int) -> HealthReport:
        subject = Edited({f"layers.{layer}.{tap}": edit}, of=checkpoint)
        return parity.check_health(checkpoint, subject=subject, length=LENGTH, gradients=False)

    return check


FAILURES = (
    Failure(
        "query and key weights times 30",
        ("entropy-collapse",),
        None,
        _weights(30, "self_attn.q_proj", "self_attn.k_proj"),
    ),
    Failure(
        "values of all tokens one vector", ("rank-collapse",), None, _computed("v_proj", one_vector)
    ),
    Failure(
        "one head fixed on one column",
        ("single-column",),
        (HEAD,),
        _computed("attn_probs", on_column(HEAD, COLUMN)),
    ),
    Failure(
        "a mask that leaks one cell",
        ("leakage",),
        (HEAD,),
        _computed("attn_probs", leaking(HEAD, QUERY, KEY)),
    ),
    Failure(
        "output weights times 1e-6",
        ("residual-vanishing",),
        (),
        _weights(1e-6, *OUT, gradients=True),
    ),
    Failure("output weights times 1e4", ("residual-exploding",), (), _weights(1e4, *OUT)),
)


@dataclass(frozen=True)
class Found:
    """What was found of a failure.

    Attributes:
        checkpoint: which.
        failure: its name.
        layer: that it was put into.
        named: whether it was found there, under its name, before all others.
        first: the finding that comes first.
        others: rules of the rest, each once.
    """

    checkpoint: str
    failure: str
    layer: int
    named: bool
    first: str
    others: list[str]


def look(name: str) -> Iterator[Found]:
    """Put each failure into a checkpoint, and say what was found."""
    checkpoint = open_checkpoint(name)
    config = checkpoint.config
    layer = config.num_hidden_layers // 2
    sound = _grave(parity.check_health(checkpoint, length=LENGTH, gradients=True))
    if sound:
        raise InputError(f"{name}: is not sound before anything is done to it: {sound[0]}")
    for failure in FAILURES:
        grave = _grave(failure.check(checkpoint, layer))
        heads = tuple(range(config.num_attention_heads)) if failure.heads is None else failure.heads
        first = grave[0] if grave else None
        named = first is not None and (
            (first.layer, first.heads) == (layer, heads) and first.rule in failure.rules
        )
        yield Found(
            checkpoint=name,
            failure=failure.name,
            layer=layer,
            named=named,
            first="" if first is None else _said(first, config.num_attention_heads),
            others=sorted({one.rule for one in grave[1:]}),
        )


def _said(finding: Any, heads: int) -> str:
    """Return a finding's name and place in words."""
    where = ", ".join(f"head {head}" for head in finding.heads) or "as a whole"
    where = "all heads" if len(finding.heads) == heads else where
    return f"{finding.rule}, layer {finding.layer}, {where}"


def _grave(report: HealthReport) -> list[Any]:
    grave = [one for one in report.findings if one.severity != "information"]
    return sorted(grave, key=lambda one: -1 if one.layer is None else one.layer)


def main() -> None:
    """Print a line for each, and write the JSON where asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--checkpoint", nargs="+", default=["tiny", "smollm2"])
    given = parser.parse_args()
    found = []
    for name in given.checkpoint:
        for one in look(name):
            found.append(one)
            said = "named" if one.named else "NOT NAMED"
            print(f"{name}: {one.failure} in layer {one.layer}: {said}: {one.first}; {one.others}")
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    sys.exit(not all(one.named for one in found))


if __name__ == "__main__":
    main()
