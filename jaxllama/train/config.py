"""A training in a TOML file: sections of numbers, each checked, all problems at once."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jaxllama.errors import ConfigError, join_problems, meant
from jaxllama.files import limits, reading

FIGURES = ("max_logit", "entropy", "residual", "gradient", "update_ratio", "loss_spike")
# The gravest last, with what is said of it.
ACTIONS = {
    "clip": "its gradients were cut down",
    "lower": "the learning rate was lowered",
    "skip": "the step was left out",
    "stop": "the run is stopped",
}
SCHEDULES = ("constant", "linear", "cosine")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _setting(fits: Callable[[Any], bool], words: str, default: Any = MISSING) -> Any:
    """Return a field that holds what `fits`, in an error called `words`."""
    return field(default=default, metadata={"fits": fits, "words": words})


def _text(default: Any = MISSING) -> Any:
    return _setting(bool, "a text that is not empty", default)


def _one_of(names: tuple[str, ...], default: Any = MISSING) -> Any:
    return _setting(lambda value: value in names, f"one of {', '.join(names)}", default)


def _count(least: int, default: Any = MISSING, most: float = math.inf) -> Any:
    words = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
    return _setting(lambda value: least <= value <= most, f"a whole number {words}", default)


def _seed() -> Any:
    return _count(0, 0, 2**32 - 1)  # Grain's shuffle takes no more


# Of float32, in which rates and thresholds are computed with; beyond it is none that is meant.
_LARGEST = 3.4e38


def _positive(default: Any = MISSING) -> Any:
    return _setting(
        lambda value: 0 < value <= _LARGEST, f"a number above 0, at most {_LARGEST:g}", default
    )


def _not_negative(default: Any = MISSING) -> Any:
    return _setting(
        lambda value: 0 <= value <= _LARGEST, f"a number from 0 to {_LARGEST:g}", default
    )


def _share(default: Any = MISSING) -> Any:
    return _setting(lambda value: 0 <= value < 1, "a number from 0 to below 1", default)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What is trained.

    Attributes:
        checkpoint: as `open_checkpoint` takes it.
        dtype: of activations and arithmetic.
        param_dtype: of the weights and of the optimiser's state.
        mesh: of devices, see `jaxllama.sharding`; None for one device.
        remat: whether a layer's activations are computed again in the backward pass, not kept.
    """

    checkpoint: str = _text()
    dtype: str = _one_of(("f32", "bf16", "f64"), "f32")
    param_dtype: str = _one_of(("f32", "bf16", "f64"), "f32")
    mesh: str | None = _text(None)
    remat: bool = False


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What it is trained on.

    Attributes:
        files: texts; a `.jsonl` has one document a line, any other file is one document.
        length: tokens of a row.
        batch: rows of a step.
        packing: whether several documents may share a row, none seeing another.
        seed: of the order of rows.
    """

    files: tuple[str, ...] = _setting(
        lambda value: len(value) > 0 and all(value), "a list of names of files"
    )
    length: int = _count(2)
    batch: int = _count(1)
    packing: bool = True
    seed: int = _seed()


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """AdamW, and how fast.

    Attributes:
        learning_rate: the highest.
        schedule: what follows the warm-up: as it is, or down to `final` at the last step.
        warmup: steps over which it rises from 0.
        final: what the schedule ends at, as a share of `learning_rate`.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of their squares.
        eps: added to the root of the latter.
        weight_decay: decoupled, of matrices alone: norms' weights have none.
        clip: norm that all gradients together are cut down to; None for no clipping.
        accumulate: parts that a batch is worked through in, one after the other.
        z_loss: weight of the square of the logarithm of the softmax's denominator.
    """

    learning_rate: float = _positive()
    schedule: str = _one_of(SCHEDULES, "constant")
    warmup: int = _count(0, 0)
    final: float = _setting(lambda value: 0 <= value <= 1, "a number from 0 to 1", 0.0)
    # As in PyTorch's AdamW.
    beta1: float = _share(0.9)
    beta2: float = _share(0.999)
    eps: float = _positive(1e-8)
    weight_decay: float = _not_negative(0.0)
    clip: float | None = _positive(None)
    accumulate: int = _count(1, 1)
    z_loss: float = _not_negative(0.0)


@dataclass(frozen=True, kw_only=True)
class MitigationSettings:
    """What is done against training that diverges, beside clipping, decay and z-loss: nothing.

    Attributes:
        attention_dropout: share of attention weights that are zero, after the softmax.
        residual_dropout: share of what attention and MLP add to the stream that is zero.
        seed: of what is dropped.
        qk_norm: whether queries and keys are divided by their root mean square before they are
            rotated, and scaled by a weight a layer that is trained along.
        qk_clip: largest logit of a head, above which its projections are scaled down after a step.
        score_cap: what scaled scores approach and never pass, by tanh, before the mask.
        logit_cap: likewise of the model's logits.
    """

    attention_dropout: float = _share(0.0)
    residual_dropout: float = _share(0.0)
    seed: int = _seed()
    qk_norm: bool = False
    qk_clip: float | None = _positive(None)
    score_cap: float | None = _positive(None)
    logit_cap: float | None = _positive(None)

    @property
    def drops(self) -> bool:
        """Whether anything is."""
        return self.attention_dropout > 0 or self.residual_dropout > 0

    @property
    def of_scores(self) -> tuple[str, ...]:
        """What is on that needs attention's scores or weights, by name."""
        return tuple(n for n in ("attention_dropout", "qk_clip", "score_cap") if getattr(self, n))

    @property
    def of_model(self) -> tuple[str, ...]:
        """What is on that makes the model another than a Llama, by name."""
        return tuple(n for n in ("qk_norm", "score_cap", "logit_cap") if getattr(self, n))


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How long, and where to.

    Attributes:
        output: directory that is made: `states`, `events`, and in the end `model` or `adapter`.
        steps: of the optimiser.
        save_every: steps from one saved state to the next; None for one at the end alone.
        keep: states that are kept, the last ones.
        export: whether what was trained is written as a checkpoint in the end.
    """

    output: str = _text()
    steps: int = _count(1, most=2**31 - 1)  # the state counts in 32 bits
    save_every: int | None = _count(1, None)
    keep: int = _count(1, 2)
    export: bool = True


def _figures() -> Any:
    return _setting(lambda value: {*value} <= {*FIGURES}, f"a list of {', '.join(FIGURES)}", ())


@dataclass(frozen=True, kw_only=True)
class MonitorSettings:
    """What is watched, and what is done beyond a threshold; a warning is given in any case.

    Attributes:
        every: steps from one that is watched to the next; 0 for none.
        max_logit: a head's largest score, above which (ViT-22B, arXiv 2302.05442; Kimi K2).
        entropy: a head's, over that of equal weights, below which; it must have fallen, too.
        residual: of a layer's states, below which.
        gradient: of a layer, times or part of the median layer's.
        update_ratio: norm of an update over the weight's, above which.
        loss_spike: standard deviations of the last 100 losses, above which.
        clip: figures beyond which the step's gradients are cut down to `clip_norm`.
        skip: figures beyond which the step moves nothing.
        lower: figures beyond which the rate of all later steps is multiplied by `lower_by`.
        stop: figures beyond which the run ends, with the state before the step saved.
        clip_norm: norm of all gradients together.
        lower_by: factor on the rate.
    """

    every: int = _count(0, 50)
    max_logit: float = _positive(100.0)
    # Those below are heuristic, as in docs/health.md.
    entropy: float = _not_negative(0.01)
    residual: float = _not_negative(0.02)
    gradient: float = _positive(1000.0)
    # Where half as much again as any sane run of docs/health-experiment.md moved in a step.
    update_ratio: float = _positive(0.65)
    loss_spike: float = _positive(6.0)
    clip: tuple[str, ...] = _figures()
    skip: tuple[str, ...] = _figures()
    lower: tuple[str, ...] = _figures()
    stop: tuple[str, ...] = _figures()
    clip_norm: float = _positive(1.0)
    lower_by: float = _share(0.5)

    def action_of(self, figure: str) -> str:
        """Return the gravest of what is to be done beyond a figure's threshold."""
        chosen = [name for name in ACTIONS if figure in getattr(self, name, ())]
        return chosen[-1] if chosen else "warn"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Factors of low rank, which are trained in place of the weights beside which they stand.

    Attributes:
        rank: of all of them; 8 if neither this nor an adapter is given, as in PEFT.
        alpha: what a product is multiplied with, before it is divided by the rank; 8.
        targets: projections that have them; queries' and values'.
        rslora: whether it is divided by the root of the rank instead.
        seed: of the first factors.
        adapter: directory of PEFT's files to go on from, which say all of the above.
    """

    rank: int | None = _count(1, None)
    alpha: float | None = _positive(None)
    targets: tuple[str, ...] | None = _setting(
        lambda value: len({*value} & {*PROJECTIONS}) == len(value) > 0,
        f"a list of {', '.join(PROJECTIONS)}, each once",
        None,
    )
    rslora: bool = False
    seed: int = _seed()
    adapter: str | None = _text(None)

    @property
    def rank_or_usual(self) -> int:
        """The rank of new factors."""
        return 8 if self.rank is None else self.rank

    @property
    def alpha_or_usual(self) -> float:
        """The alpha of new factors."""
        return 8.0 if self.alpha is None else float(self.alpha)

    @property
    def targets_or_usual(self) -> tuple[str, ...]:
        """What has new factors."""
        return self.targets or ("q_proj", "v_proj")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training; see docs/train.md."""

    model: ModelSettings
    data: DataSettings
    optimiser: OptimiserSettings
    run: RunSettings
    monitor: MonitorSettings = MonitorSettings()
    lora: LoraSettings | None = None
    mitigation: MitigationSettings = MitigationSettings()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "configuration") -> TrainConfig:
        """Make it of sections of settings.

        Args:
            content: settings by section, as in the file.
            source: what to call it in an error.

        Raises:
            ConfigError: unknown sections or settings, missing ones, and values that are none;
                all in one message.
        """
        kinds = get_type_hints(cls)
        problems = [
            f"[{name}]: no such section; {meant(name, kinds)}expected {', '.join(kinds)}"
            for name in content
            if name not in kinds
        ]
        made: dict[str, Any] = {}
        optional = {f.name for f in fields(cls) if f.default is None} - {*content}
        for name in (name for name in kinds if name not in optional):
            kind, given = _without_none(kinds[name]), content.get(name, {})
            if not isinstance(given, Mapping):
                problems.append(f"{name}: {given!r:.60}, expected a section [{name}]")
                continue
            found = _read(kind, given, name)
            problems += found
            if not found:
                made[name] = kind(**{key: _plain(value) for key, value in given.items()})
        if not problems:
            problems = _contradictions(made["data"], made["optimiser"], made["run"])
            problems += _told_twice(made.get("lora"))
            problems += _unfit(made["mitigation"], made["run"])
        if problems:
            raise ConfigError(join_problems(source, problems))
        return cls(**made)


def read_config(path: str | Path) -> TrainConfig:
    """Read a training from a TOML file.

    Raises:
        CheckpointError: it cannot be read.
        ConfigError: it is no TOML, or as for `TrainConfig.from_dict`.
    """
    content = reading.read_bytes(Path(path), limits.TEXT_BYTES)
    try:
        parsed = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 at byte {error.start}; save it so") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is no TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is no TOML that can be read: nested too deeply") from None
    return TrainConfig.from_dict(parsed, str(path))


def _read(kind: type, given: Mapping[str, Any], section: str) -> list[str]:
    """Return what is wrong with a section."""
    known, hints, problems = {f.name: f for f in fields(kind)}, get_type_hints(kind), []
    for name, value in given.items():
        if name not in known:
            said = f"no such setting; {meant(name, known)}known: {', '.join(known)}"
            problems.append(f"[{section}] {name}: {said}")
            continue
        fits, words = (known[name].metadata.get(k) for k in ("fits", "words"))
        if not _is_typed(value, hints[name]) or (fits is not None and not fits(value)):
            said = f"expected {words or 'true or false'}"
            problems.append(f"[{section}] {name} = {value!r:.60}: {said}")
    missing = [n for n, f in known.items() if f.default is MISSING and n not in given]
    return problems + [
        f"[{section}] {name} is missing: {known[name].metadata['words']}" for name in missing
    ]


def _without_none(hint: Any) -> type:
    """Return the kind of a section, which may be left out."""
    return next((one for one in get_args(hint) if one is not type(None)), hint)


def _is_typed(value: Any, hint: Any) -> bool:
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if isinstance(value, list):
        return any(get_args(kind)[:1] == (str,) for kind in kinds) and all(
            isinstance(one, str) for one in value
        )
    if isinstance(value, bool) or not isinstance(value, int):
        return type(value) in kinds
    return int in kinds or float in kinds


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _contradictions(
    data: DataSettings, optimiser: OptimiserSettings, run: RunSettings
) -> list[str]:
    problems = []
    if data.batch % optimiser.accumulate:
        problems.append(
            f"[data] batch = {data.batch} does not divide into [optimiser] accumulate = "
            f"{optimiser.accumulate} parts"
        )
    if optimiser.warmup >= run.steps:
        problems.append(
            f"[optimiser] warmup = {optimiser.warmup}: expected less than [run] steps = {run.steps}"
        )
    return problems


def _told_twice(lora: LoraSettings | None) -> list[str]:
    """Return settings of factors that an adapter brings itself."""
    if lora is None or lora.adapter is None:
        return []
    usual = LoraSettings(adapter=lora.adapter)
    return [
        f"[lora] {f.name} = {getattr(lora, f.name)!r:.60}: the adapter says it; leave it out"
        for f in fields(lora)
        if getattr(lora, f.name) != getattr(usual, f.name)
    ]


def _unfit(mitigation: MitigationSettings, run: RunSettings) -> list[str]:
    problems = []
    if mitigation.qk_norm and mitigation.qk_clip is not None:
        problems.append(
            "[mitigation] qk_clip scales weights down, and qk_norm takes their scale out again; "
            "leave one of them out"
        )
    if mitigation.of_model and run.export:
        problems.append(
            f"[mitigation] {', '.join(mitigation.of_model)}: what is trained is no Llama then, "
            "which no checkpoint would tell its readers; set [run] export = false, and take it "
            "from its states"
        )
    return problems
