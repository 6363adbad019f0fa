"""Does the early warning come in time? Small trainings from sane learning rates to absurd ones.

Thresholds are chosen on seeds 0 to 5 of the small model and frozen; what is told of them is of
seeds 6 to 8 and of a larger model. What counts as diverging and as sane is defined here, before
any run:

- diverging: the loss is not finite, or is above its start by 0.5 for 50 steps on end;
- sane: not diverging, and the mean of its last 50 losses is at most 0.25 above that of the best
  rate of its kind (size, precision, warm-up, seed), or its rate is lower than that one;
- neither: the rest, which learns badly and does not diverge. It is told of apart.

The loss exceeds its start at the first step of the stretch above it in which the run diverges. A
watched step comes before that, or does not count.

    python scripts/health_experiment.py --json docs/health-experiment.json [--jobs 2]
    python scripts/health_experiment.py --json docs/health-experiment.json --again
    python scripts/draw_health_experiment.py                                 # page and curves
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import groupby, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import binomtest

from jaxllama.checkpoint import convert, in_memory
from jaxllama.checkpoint.names import expected_tensors
from jaxllama.checkpoint.samples import TINY, tiny
from jaxllama.config import LlamaConfig
from jaxllama.errors import TrainingError
from jaxllama.train import TrainConfig, TrainingRun
from jaxllama.train.config import FIGURES, MonitorSettings
from jaxllama.train.data import Batches
from jaxllama.train.watch import HealthWarning
from parity.runner import machine

ROOT = Path(__file__).parents[1]
# Seven pages of docs as they once were: text that no later edit changes.
TEXTS = ROOT / "docs" / "health-experiment-texts.jsonl"
CHOSEN_ON, JUDGED_ON, DRAWN = (0, 1, 2, 3, 4, 5), (6, 7, 8), 6
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 6e-1, 1.0, 3.0)
STEPS, WARMUP, EVERY = 150, 20, 10
ABOVE, STRETCH, WITHIN = 0.5, 50, 0.25
# Thresholds lie beyond the furthest of all sane runs by so much.
MARGIN = 1.5
BELOW = ("entropy", "residual")
DIVERGING, SANE, NEITHER = "diverging", "sane", "neither"

SIZES: Mapping[str, LlamaConfig] = {
    "small": TINY.replace(
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "larger": TINY.replace(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
    ),
}
GROUPS = (("small, seeds 6-8", "small", JUDGED_ON), ("larger, seeds 6-8", "larger", JUDGED_ON))
# What is done against failures, at rates at which there are any.
HARD_RATES = (0.1, 0.6, 1.0)
WARMED = "warm-up"
MITIGATIONS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "none": {},
    WARMED: {},
    "gradient clipping, norm 1": {"optimiser": {"clip": 1.0}},
    "weight decay 0.1": {"optimiser": {"weight_decay": 0.1}},
    "z-loss 1e-4": {"optimiser": {"z_loss": 1e-4}},
    "dropout 0.1": {"mitigation": {"attention_dropout": 0.1, "residual_dropout": 0.1}},
    "QK-norm": {"mitigation": {"qk_norm": True}, "run": {"export": False}},
    "QK-clip, tau 100": {"mitigation": {"qk_clip": 100.0}},
    "score cap 50": {"mitigation": {"score_cap": 50.0}, "run": {"export": False}},
    "logit cap 30": {"mitigation": {"logit_cap": 30.0}, "run": {"export": False}},
}
# So strict that every figure of every watched step is beyond it, and so told with its value; of
# entropies those that have fallen.
EVERYTHING = {
    "max_logit": 1e-30,
    "entropy": 1e30,
    "residual": 1e30,
    "gradient": 1 + 1e-12,
    "update_ratio": 1e-30,
    "loss_spike": 1e-30,
}


@dataclass(frozen=True)
class Kind:
    """What runs have in common that differ by their learning rate alone."""

    size: str
    dtype: str
    warmup: bool
    seed: int


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        kind: what is trained.
        rate: the highest of the schedule.
        losses: of the steps; the last is not finite where it ended so.
        first: by figure the first warning beyond the limits, as step, value and place.
        extreme: by figure the value furthest on its wrong side, of all warnings, those within the
            limits, too.
    """

    kind: Kind
    rate: float
    losses: list[float]
    first: dict[str, tuple[int, float, str]] = field(default_factory=dict)
    extreme: dict[str, float] = field(default_factory=dict)

    @property
    def diverged(self) -> int | None:
        """The step, from 1, at which the loss exceeds its start for good; None if it does not."""
        start, stretch = self.losses[0], 0
        for number, loss in enumerate(self.losses, start=1):
            if not math.isfinite(loss):
                return number - stretch
            stretch = stretch + 1 if loss > start else 0
            if stretch >= STRETCH and min(self.losses[number - STRETCH : number]) > start + ABOVE:
                return number - stretch + 1
        return None

    @property
    def final(self) -> float:
        """The mean of its last losses."""
        return statistics.fmean(self.losses[-STRETCH:])

    @property
    def warned(self) -> int | None:
        """The step of the first warning."""
        return min((step for step, _, _ in self.first.values()), default=None)


def start(config: LlamaConfig, seed: int, folder: Path) -> Path:
    """Write a model as it is before any training, and return where it is."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_tensors(config):
        values = np.ones(shape)
        if len(shape) > 1:
            values = 0.02 * rng.standard_normal(shape)
        if name.endswith(("o_proj.weight", "down_proj.weight")):  # as GPT-2's
            values /= math.sqrt(2 * config.num_hidden_layers)
        weights[name] = values.astype(np.float32)
    made = in_memory(config, weights, companions={n: f() for n, f in tiny().companions.items()})
    return convert(made, folder / "model", to="hf").target


def prepared(
    kind: Kind, folder: Path, steps: int, changed: Mapping[str, Mapping[str, Any]]
) -> TrainingRun:
    """Return a training at rate 1: each run's own is the state's factor on it."""
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "checkpoint": str(start(SIZES[kind.size], kind.seed, folder)),
            "dtype": kind.dtype,
        },
        "data": {"files": [str(TEXTS)], "length": 64, "batch": 8, "seed": kind.seed},
        "optimiser": {"learning_rate": 1.0, "warmup": WARMUP if kind.warmup else 0},
        "run": {"output": str(folder / "out"), "steps": steps},
        "monitor": {"every": EVERY},
    }
    for section, values in changed.items():
        sections[section] = sections.get(section, {}) | values
    return TrainingRun(TrainConfig.from_dict(sections))


def trained(
    run: TrainingRun, kind: Kind, rate: float, steps: int, limits: Mapping[str, float]
) -> Run:
    """Make one training's steps, all of them unless the loss ceases to be finite."""
    run.state = run.state._replace(rate=jnp.float32(rate))
    run.batches = Batches(run.rows, run.config.data)
    run.monitor.forget()
    losses: list[float] = []
    for number in range(steps):
        try:
            losses.append(run.advance(number).loss)
        except TrainingError:
            losses.append(math.nan)
            break
    made = Run(kind, rate, [round(loss, 4) for loss in losses])
    take(made, run.monitor.warnings, limits)
    return made


def take(made: Run, warnings: Iterable[HealthWarning], limits: Mapping[str, float]) -> None:
    """Take a run's warnings; those are told of that are beyond laxer limits, too."""
    for one in warnings:
        value = one.value
        if one.figure == "gradient" and one.side == "below":  # how many times is what counts
            value = 1 / max(value, 1e-30)
        furthest = min if one.figure in BELOW else max
        made.extreme[one.figure] = furthest(value, made.extreme.get(one.figure, value))
        limit = limits.get(one.figure)
        if limit is None or (value < limit if one.figure in BELOW else value > limit):
            made.first.setdefault(one.figure, (one.step, float(f"{one.value:.4g}"), one.where))


def runs_of(
    kind: Kind,
    rates: Sequence[float] = RATES,
    steps: int = STEPS,
    changed: Mapping[str, Mapping[str, Any]] | None = None,
    limits: Mapping[str, float] | None = None,
) -> list[Run]:
    """Return the trainings of a kind at all rates, told of what is beyond `limits`."""
    with tempfile.TemporaryDirectory() as folder:
        run = prepared(kind, Path(folder), steps, changed or {})
        before, made = run.state, []
        for rate in rates:
            run.state = jax.tree.map(jnp.copy, before)
            made.append(trained(run, kind, rate, steps, limits or {}))
    return made


def kinds(size: str, seeds: Iterable[int]) -> list[Kind]:
    """Return every kind of a size."""
    return [Kind(size, *rest) for rest in product(("f32", "bf16"), (False, True), seeds)]


def outcomes(runs: Sequence[Run]) -> list[str]:
    """Return what became of each run, as defined above."""
    found = {}
    for _, group in groupby(sorted(runs, key=_kind_of), key=_kind_of):
        same = list(group)
        steady = [run for run in same if run.diverged is None]
        best = min(steady, key=lambda run: run.final, default=None)
        for run in same:
            if run.diverged is not None:
                found[id(run)] = DIVERGING
            elif best and (run.rate < best.rate or run.final <= best.final + WITHIN):
                found[id(run)] = SANE
            else:
                found[id(run)] = NEITHER
    return [found[id(run)] for run in runs]


def _kind_of(run: Run) -> tuple[Any, ...]:
    return (*asdict(run.kind).values(),)


def chosen(runs: Sequence[Run]) -> dict[str, float]:
    """Return the usual thresholds, laxer where sane runs went near them: by their extremes."""
    sane = [run for run, outcome in zip(runs, outcomes(runs), strict=True) if outcome == SANE]
    found = {}
    for figure in FIGURES:
        values = [run.extreme[figure] for run in sane if figure in run.extreme]
        usual = getattr(MonitorSettings, figure)
        if figure in BELOW:
            found[figure] = min([usual, *(value / MARGIN for value in values)])
        else:
            found[figure] = max([usual, *(value * MARGIN for value in values)])
    return {figure: float(f"{limit:.2g}") for figure, limit in found.items()}


def report(runs: Sequence[Run]) -> dict[str, Any]:
    """Return how many diverging runs were warned in time and how many sane ones stayed silent."""
    named = list(zip(runs, outcomes(runs), strict=True))
    passed = [(run, run.diverged) for run, outcome in named if outcome == DIVERGING]
    notices = [step - run.warned for run, step in passed if step and run.warned is not None]
    sane = [run for run, outcome in named if outcome == SANE]
    rest = [run for run, outcome in named if outcome == NEITHER]
    in_time, silent = sum(n > 0 for n in notices), sum(run.warned is None for run in sane)
    return {
        "diverging": len(passed),
        "warned_in_time": in_time,
        "warned_interval": interval(in_time, len(passed)),
        "notice": sorted(notices),
        "sane": len(sane),
        "silent": silent,
        "silent_interval": interval(silent, len(sane)),
        "silent_shipped": unwarned(sane),
        "neither": len(rest),
        "neither_warned": sum(run.warned is not None for run in rest),
        "by_figure": {
            figure: sum(
                run.first[figure][0] < step for run, step in passed if step and figure in run.first
            )
            for figure in FIGURES
        },
    }


def unwarned(sane: Sequence[Run]) -> int:
    """Return how many runs the thresholds that are shipped say nothing of."""
    return sum(not run.extreme for run in sane)


def sane_again(content: Mapping[str, Any], name: str, apply: Callable[..., Any] = map) -> int:
    """Make the sane runs of a group once more, and return of how many nothing is said now.

    Args:
        content: an experiment.
        name: of a group of it.
        apply: as `map`, perhaps in several processes.

    Raises:
        ValueError: a run is another than it was: its losses are.
    """
    rates: dict[Kind, list[float]] = {}
    finals: dict[tuple[Kind, float], float] = {}
    for one in content["runs"][name]:
        if one["outcome"] == SANE:
            kind = Kind(**one["kind"])
            rates.setdefault(kind, []).append(one["rate"])
            finals[kind, one["rate"]] = one["final"]
    made = [run for runs in apply(runs_of, rates, rates.values()) for run in runs]
    for run in made:
        before = finals[run.kind, run.rate]
        if not math.isclose(run.final, before, abs_tol=WITHIN / 5):
            raise ValueError(f"{run.kind} at {run.rate}: loss {run.final:.4f}, was {before:.4f}")
    return unwarned(made)


def interval(part: int, whole: int) -> list[float]:
    """Return the exact interval of 95 % of a share."""
    if not whole:
        return [0.0, 1.0]
    found = binomtest(part, whole).proportion_ci(0.95, "exact")
    return [round(float(found.low), 4), round(float(found.high), 4)]


def told(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return runs as the JSON has them; all losses of those alone that are drawn."""
    found = []
    for run, outcome in zip(runs, outcomes(runs), strict=True):
        drawn = run.kind.size == "small" and run.kind.seed == DRAWN
        found.append(
            {
                "kind": asdict(run.kind),
                "rate": run.rate,
                "outcome": outcome,
                "start": run.losses[0],
                "final": round(run.final, 4),
                "exceeds": run.diverged,
                "first": run.first,
                "extreme": run.extreme,
                "losses": run.losses if drawn else [],
            }
        )
    return found


def summed_up(name: str, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Return what runs under a mitigation came to, a rate at a time."""
    for rate in HARD_RATES:
        same = [run for run in runs if run.rate == rate]
        figures = Counter(figure for run in same for figure in run.first)
        yield {
            "name": name,
            "rate": rate,
            "runs": len(same),
            "diverging": sum(run.diverged is not None for run in same),
            "final": statistics.median(run.final for run in same),
            "warned": sum(run.warned is not None for run in same),
            "figures": dict(figures.most_common()),
        }


def main() -> None:
    """Make all runs, or go on after the last that a JSON has, and write it after each part."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument(
        "--again",
        action="store_true",
        help="make the sane runs of the JSON once more, and count those that are silent now",
    )
    given = parser.parse_args()
    content: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine.line(machine.describe()),
        "libraries": {name: version(name) for name in ("jax", "flax", "optax")},
        "seconds": 0,
        "reports": {},
        "runs": {},
        "mitigations": [],
    }
    if given.json.exists():
        content |= json.loads(given.json.read_text())
        print(f"goes on with {given.json}")
    before, began = content["seconds"], time.monotonic()

    def note(done: str) -> None:
        content["seconds"] = round(before + time.monotonic() - began)
        given.json.write_text(json.dumps(content) + "\n")
        print(f"{content['seconds']} s: {done}", flush=True)

    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        if given.again:
            for name, _, _ in GROUPS:
                silent = sane_again(content, name, pool.map)
                content["reports"][name]["silent_shipped"] = silent
                print(f"{name}: silent {silent} of {content['reports'][name]['sane']}", flush=True)
            content["shipped"] = datetime.date.today().isoformat()
            given.json.write_text(json.dumps(content) + "\n")
            return

        def all_of(todo: Sequence[Kind], **how: Any) -> list[Run]:
            return [run for runs in pool.map(partial(runs_of, **how), todo) for run in runs]

        if "thresholds" not in content:
            choosing = all_of(kinds("small", CHOSEN_ON), changed={"monitor": EVERYTHING})
            content["thresholds"] = chosen(choosing)
            note(f"thresholds {content['thresholds']}")
        # Run under the monitor's own thresholds, which are never laxer: both are then told of.
        frozen = content["thresholds"]
        for name, size, seeds in GROUPS:
            if name not in content["runs"]:
                judged = all_of(kinds(size, seeds), limits=frozen)
                content["reports"][name] = report(judged)
                content["runs"][name] = told(judged)
                note(name)
        hard = [Kind("small", "f32", warmup=False, seed=seed) for seed in JUDGED_ON]
        for name, sections in MITIGATIONS.items():
            if not any(one["name"] == name for one in content["mitigations"]):
                todo = [replace(kind, warmup=name == WARMED) for kind in hard]
                made = all_of(todo, rates=HARD_RATES, changed=sections, limits=frozen)
                content["mitigations"] += summed_up(name, made)
                note(name)


if __name__ == "__main__":
    main()
