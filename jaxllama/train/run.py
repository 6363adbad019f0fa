"""A training from its configuration to the trained checkpoint, or adapter."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxllama.checkpoint import Checkpoint, load_model, open_checkpoint
from jaxllama.errors import ConfigError, InputError, TrainingError, in_python
from jaxllama.sharding import ModelSharding, model_sharding
from jaxllama.sharding.hosts import is_first
from jaxllama.train.config import TrainConfig, read_config
from jaxllama.train.data import Batches, digest_of, encode_documents, make_rows, read_documents
from jaxllama.train.events import Events
from jaxllama.train.interrupt import held_back
from jaxllama.train.lora import Adaptation, adapt, save_factors
from jaxllama.train.mitigation import added_weights
from jaxllama.train.optimiser import make_optimiser, schedule
from jaxllama.train.packing import TokenRows
from jaxllama.train.state import SavedStates, check_output
from jaxllama.train.step import Batch, StepFigures, TrainState, initial_state, train_step
from jaxllama.train.watch import HealthMonitor, HealthWarning, locate_nonfinite
from jaxllama.train.watch.figures import WatchedFigures
from jaxllama.train.weights import Weights, holding, taken_apart


@dataclass(frozen=True)
class Progressed:
    """What is told after every step.

    Attributes:
        step: how many have been made.
        steps: of the whole training.
        loss: of the step's batch, in nats.
        gradient: norm of all gradients, before clipping.
        rate: learning rate of the step.
        tokens: predicted in the step.
        seconds: of the step.
        watched: figures of the monitor, where the step was watched.
        warnings: what it found.
    """

    step: int
    steps: int
    loss: float
    gradient: float
    rate: float
    tokens: int
    seconds: float
    watched: WatchedFigures | None = None
    warnings: tuple[HealthWarning, ...] = ()


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes:
        output: its directory.
        model: the trained checkpoint, or of LoRA the adapter; None where none was to be written.
        losses: of the steps that this run made.
        steps: that it has been trained for, earlier runs' among them.
        notes: remarks.
    """

    output: Path
    model: Path | None
    losses: tuple[float, ...]
    steps: int
    notes: tuple[str, ...]


def train(
    config: TrainConfig | str | Path,
    *,
    resume: bool = False,
    progress: Callable[[Progressed], None] = lambda _: None,
) -> Trained:
    """Train a model, save its state on the way, and write it as a checkpoint, or its LoRA factors.

    Args:
        config: or the TOML file that has it.
        resume: whether to go on from the last state in the configuration's output.
        progress: called after every step.

    Raises:
        ConfigError: the configuration is contradictory or not understood.
        InputError: texts that cannot be read or are too short, an output that is there already,
            devices that are not.
        CheckpointError: the checkpoint or a state cannot be read or written.
        TrainingError: the loss is not finite.
        KeyboardInterrupt: after the state was saved.
    """
    config = config if isinstance(config, TrainConfig) else read_config(config)
    check_output(config, resume=resume)
    run = TrainingRun(config)
    return run.finish(resume, progress)


class TrainingRun:
    """A training that is ready to begin: everything read, nothing written yet.

    Args:
        config: the whole of it.

    Raises:
        As for `train`.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        texts = read_documents(config.data.files)  # first: the quickest to be found wanting
        self.checkpoint: Checkpoint = open_checkpoint(config.model.checkpoint)
        numbers, settings = self.checkpoint.config, config.model
        what = f"[data] length = {config.data.length}"
        for problem in numbers.context_problems(config.data.length, what, "give a smaller length"):
            raise ConfigError(problem)
        self.sharding: ModelSharding | None = None
        if settings.mesh is not None:
            try:
                self.sharding = model_sharding(settings.mesh, numbers, "stacked")
            except InputError as error:  # of which training has no option
                raise ConfigError(f"[model] {in_python(error.marked)}") from None
        documents = encode_documents(texts, self.checkpoint.tokenizer(), numbers.eos_token_ids)
        self.rows = make_rows(documents, config.data, numbers.vocab_size)
        model = load_model(
            self.checkpoint,
            dtype=settings.dtype,
            param_dtype=settings.param_dtype,
            form="stacked",
            mesh=self.sharding,
        )
        model.remat = settings.remat
        self.graph, weights = taken_apart(model)
        added = added_weights(config.mitigation, numbers, settings.param_dtype)
        weights |= {name: self._everywhere(value) for name, value in added.items()}
        self.frozen: Weights = {}
        self.adaptation: Adaptation | None = None
        if config.lora is not None:
            self.adaptation = adapt(config.lora, weights, self.checkpoint, self.sharding)
            weights, self.frozen = self.adaptation.factors, self.adaptation.frozen
        self.optimiser = make_optimiser(config.optimiser, config.run.steps)
        self.rate_of: optax.Schedule = schedule(config.optimiser, config.run.steps)
        self.state = initial_state(weights, self.optimiser, self._everywhere)
        places = jax.tree.map(lambda x: x.sharding, self.state)
        self._step: Callable[[TrainState, Weights, Batch], tuple[TrainState, StepFigures]] = (
            jax.jit(
                partial(
                    train_step,
                    self.graph,
                    self.optimiser,
                    z_loss=config.optimiser.z_loss,
                    mitigation=config.mitigation,
                ),
                donate_argnums=0,
                out_shardings=(places, None),
            )
        )
        self.batches = Batches(self.rows, config.data)
        self.monitor = HealthMonitor(
            config.monitor, self.graph, self.optimiser, config.optimiser.z_loss, config.mitigation
        )

    def _everywhere(self, value: Any) -> jax.Array:
        """Return a small array on all devices of the mesh."""
        if self.sharding is None:
            return jax.device_put(np.asarray(value))
        return jax.device_put(np.asarray(value), NamedSharding(self.sharding.mesh, PartitionSpec()))

    def on_devices(self, rows: TokenRows) -> Batch:
        """Return rows as a batch in its parts, where the mesh has it."""
        parts = self.config.optimiser.accumulate

        def laid(array: np.ndarray) -> jax.Array:
            array = array.reshape(parts, -1, array.shape[-1])
            if self.sharding is None:
                return jax.device_put(array)
            where = self.sharding.of((None, "batch", None), array.shape)
            return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

        return Batch(*map(laid, rows))

    def step(self, batch: Batch) -> StepFigures:
        """Make one step."""
        self.state, figures = self._step(self.state, self.frozen, batch)
        return figures

    def finish(self, resume: bool, progress: Callable[[Progressed], None]) -> Trained:
        """Make all steps that are left, and write what came of it; see `train`."""
        config, losses = self.config, []
        states = SavedStates(config, digest_of(self.rows))
        try:
            if resume:
                self.state, self.batches.state, watched = states.restore(self.state)
                self.monitor.recall(watched)
            first = int(self.state.step)
            events = Events(Path(config.run.output) / "events", speaks=is_first())
            try:
                with held_back() as interrupted:
                    for number in range(first, config.run.steps):
                        try:
                            told = self.advance(number)
                        except TrainingError:  # the state is the one before the step
                            states.save(self.state, self.batches.state, self.monitor.memory())
                            raise
                        losses.append(told.loss)
                        events.write(number + 1, _curves(told))
                        progress(told)
                        every = config.run.save_every
                        if interrupted():
                            states.save(self.state, self.batches.state, self.monitor.memory())
                            raise KeyboardInterrupt
                        if every and (number + 1) % every == 0:
                            states.save(self.state, self.batches.state, self.monitor.memory())
                    states.save(self.state, self.batches.state, self.monitor.memory())
            finally:
                events.close()
        finally:
            states.close()
        notes = () if self.adaptation is None else (self.adaptation.note(),)
        model = self.export() if config.run.export else None
        return Trained(Path(config.run.output), model, tuple(losses), int(self.state.step), notes)

    def advance(self, number: int) -> Progressed:
        """Make the next step, watched where that is due.

        Args:
            number: of the step, from 0.

        Raises:
            TrainingError: loss or gradients are not finite, or a warning is to stop the run; the
                state is the one before the step.
        """
        began = time.perf_counter()
        data = self.batches.state
        batch = self.on_devices(next(self.batches))
        watched: WatchedFigures | None = None
        found: list[HealthWarning] = []
        rate = float(self.rate_of(number)) * float(self.state.rate)  # before a warning lowers it
        if self.monitor.is_due(number + 1):
            self.state, figures, watched, found = self.monitor.step(self.state, self.frozen, batch)
        else:
            figures = self.step(batch)
        if not figures.finite:
            self.batches.state = data
            where = locate_nonfinite(
                self.graph,
                self.state.weights | self.frozen,
                batch,
                self.config.mitigation,
                number,
                z_loss=self.config.optimiser.z_loss,
                trained=self.state.weights,
            )
            raise TrainingError(
                f"step {number + 1}: the loss is {float(figures.loss):g}, the norm of its "
                f"gradients {float(figures.gradient):g}: {where}; the state before the step is "
                f"saved in {self.config.run.output}"
            )
        if stopping := [one for one in found if one.action == "stop"]:
            self.batches.state = data
            raise TrainingError(
                f"{stopping[0]}{_beside(stopping[0], found)}; the state before the step is saved "
                f"in {self.config.run.output}"
            )
        self.monitor.note_loss(float(figures.loss))
        return Progressed(
            step=number + 1,
            steps=self.config.run.steps,
            loss=float(figures.loss),
            gradient=float(figures.gradient),
            rate=rate,
            tokens=int(figures.tokens),
            seconds=time.perf_counter() - began,
            watched=watched,
            warnings=tuple(found),
        )

    def export(self) -> Path:
        """Write the trained model as a checkpoint, or its factors as PEFT's, beside the states.

        Raises:
            InputError: it is no Llama, and would pass for one.
        """
        if other := self.config.mitigation.of_model:
            raise InputError(
                f"[mitigation] {', '.join(other)}: what was trained is no Llama, and no format of "
                "checkpoints says so; take it from its states"
            )
        output, several = Path(self.config.run.output), jax.process_count() > 1
        if self.adaptation is not None:
            return save_factors(
                self.adaptation,
                self.state.weights,
                self.checkpoint,
                output / "adapter",
                base=self.config.model.checkpoint,
                overwrite=not several,
            )
        target = output / "model"
        model = holding(self.graph, self.state.weights | self.frozen)
        model.save_pretrained(
            target,
            format="orbax" if several else "hf",
            tokenizer=self.checkpoint,
            overwrite=not several,
        )
        return target


def _beside(said: HealthWarning, found: Sequence[HealthWarning]) -> str:
    """Return what else was found in a step that stops a run: no progress will tell of it."""
    others = Counter(one.figure for one in found if one is not said)
    listed = ", ".join(f"{count} of {figure}" for figure, count in sorted(others.items()))
    return f"; further warnings of this step: {listed}" if others else ""


def _curves(told: Progressed) -> dict[str, float]:
    curves = {
        "train/loss": told.loss,
        "train/gradient_norm": told.gradient,
        "train/learning_rate": told.rate,
        "train/tokens_per_second": told.tokens / max(told.seconds, 1e-9),
    }
    if told.watched is None:
        return curves
    for name, values in told.watched._asdict().items():
        by_kind = values if isinstance(values, dict) else {"": values}
        for kind, figures in by_kind.items():
            for at, value in np.ndenumerate(figures):
                place = "".join(f"/{w}{i}" for w, i in zip(("layer", "head"), at, strict=False))
                curves[f"monitor/{name}{'/' * bool(kind)}{kind}{place}"] = float(value)
    return curves | {"monitor/warnings": float(len(told.warnings))}
