"""States of a training, saved by Orbax so that a run goes on as if it had not stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from jaxllama.checkpoint.orbax.read import context
from jaxllama.errors import CheckpointError, InputError, join_problems
from jaxllama.train.config import TrainConfig
from jaxllama.train.step import TrainState

# Settings that a run may be gone on with changed: what is computed stays, to rounding.
_FREE = {
    ("run", "output"),
    ("run", "save_every"),
    ("run", "keep"),
    ("run", "export"),
    ("model", "mesh"),
    ("model", "remat"),
}


class SavedStates:
    """The states of one run.

    Args:
        config: of the run; what it trains on and how is noted with each state.
        rows: digest of the rows that are trained on.
    """

    def __init__(self, config: TrainConfig, rows: str) -> None:
        import orbax.checkpoint.experimental.v1 as ocp

        self._config, self._rows, self._settings = config, rows, settings_of(config)
        self._path = Path(config.run.output).absolute() / "states"
        how = context()
        how.array.saving.use_ocdbt = True  # many small arrays, in one store
        kept = ocp.training.preservation_policies.LatestN(config.run.keep)
        self._orbax = ocp.training.Checkpointer(
            self._path, preservation_policy=kept, context=how, cleanup_tmp_directories=True
        )

    def save(self, state: TrainState, data: str, watched: Mapping[str, Any]) -> None:
        """Save a state, whole or not at all.

        Args:
            state: to save.
            data: where the batches stand.
            watched: what the monitor remembers.

        Raises:
            CheckpointError: it cannot be written.
        """
        step = int(state.step)
        latest = self._orbax.latest
        if latest is not None and latest.step == step:
            return
        try:
            noted = {
                "rows": self._rows,
                "settings": self._settings,
                "data": data,
                "watched": dict(watched),
            }
            self._orbax.save(step, _as_tree(state), force=True, custom_metadata=noted)
        except OSError as error:
            reason = error.strerror or error
            raise CheckpointError(f"{self._path}: cannot be written: {reason}") from error

    def restore(self, like: TrainState) -> tuple[TrainState, str, Mapping[str, Any]]:
        """Return the last state, where the batches stood, and what the monitor remembered.

        Args:
            like: a state of the same shapes, which lies where it is to lie.

        Raises:
            CheckpointError: there is none, or it is damaged.
            InputError: it is of another training.
        """
        latest = self._orbax.latest
        if latest is None:
            raise CheckpointError(f"{self._path}: holds no whole state; start anew elsewhere")
        place = f"{self._path / str(latest.step)}"
        noted: Any = self._orbax.metadata(latest.step).custom_metadata
        if not isinstance(noted, Mapping) or {"rows", "settings", "data"} - noted.keys():
            raise CheckpointError(f"{place}: is no state of a training")
        if problems := self._differences(noted):
            raise InputError(join_problems(f"{place}: was saved of another training", problems))
        wanted = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        try:
            found = self._orbax.load(latest.step, _as_tree(wanted))
        except Exception as error:  # of many kinds, by what is damaged
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{place}: cannot be read ({type(error).__name__}: {reason}); remove it to go on "
                "from the state before"
            ) from None
        return TrainState(**found), str(noted["data"]), noted.get("watched", {})

    def _differences(self, noted: Mapping[str, Any]) -> list[str]:
        def default(section: str, name: str) -> Any:
            if getattr(TrainConfig, section, section) is None:
                return None  # a section that may be left out, and was
            return getattr(type(getattr(self._config, section)), name, None)

        problems = [
            f"[{section}] {name} = {now!r}, then {then!r}"
            for section in {**noted["settings"], **self._settings}
            for name in {**noted["settings"].get(section, {}), **self._settings.get(section, {})}
            # What a state says nothing of is newer than it, and was as it is where it is not set.
            if (now := self._settings.get(section, {}).get(name))
            != (then := noted["settings"].get(section, {}).get(name, default(section, name)))
            and (section, name) not in _FREE
            and section != "monitor"
            # How long it is to be moves no rate that is constant.
            and not (name == "steps" and self._config.optimiser.schedule == "constant")
        ]
        if not problems and noted["rows"] != self._rows:
            problems = ["[data] files hold other texts now, or the tokenizer is another"]
        return problems

    def close(self) -> None:
        """Let go of threads."""
        self._orbax.close()


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """Return settings by section as JSON has them."""
    return {
        section: {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in settings.items()
        }
        for section, settings in asdict(config).items()
        if settings is not None
    }


def latest_step(output: Path) -> int | None:
    """Return after how many steps the last whole state of a run was saved; None without one."""
    steps = [
        int(path.name)
        for path in (output / "states").glob("*")
        if path.name.isdecimal() and (path / "_CHECKPOINT_METADATA").exists()
    ]
    return max(steps, default=None)


def _as_tree(state: TrainState) -> dict[str, Any]:
    return state._asdict()


def check_output(config: TrainConfig, *, resume: bool) -> None:
    """Refuse a place for results before anything is loaded.

    Raises:
        InputError: there is a run already and it is not to be gone on with, or there is none.
    """
    output = Path(config.run.output)
    there = latest_step(output) is not None
    if resume and not there:
        raise InputError(f"{output}: there is no saved state to go on from; leave out --resume")
    # A run that ended before its first state has left nothing that anybody needs.
    foreign = output.is_dir() and {one.name for one in output.iterdir()} - {"states", "events"}
    if not resume and (there or foreign or (output.exists() and not output.is_dir())):
        ways = ["go on with it by --resume"] * there + ["choose another [run] output"]
        raise InputError(f"{output}: exists already; {', or '.join(ways)}")
