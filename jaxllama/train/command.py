"""`jaxllama train`: a bar on stderr, the outcome on stdout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxllama import compilation_cache
from jaxllama.command_line.console import SafeConsole
from jaxllama.command_line.interrupt import on_interrupt
from jaxllama.command_line.printable import one_line
from jaxllama.command_line.streams import libraries_on_stderr
from jaxllama.errors import InputError

if TYPE_CHECKING:
    from jaxllama.train.run import Progressed

_NEEDED = {"optax", "grain"}


def train(
    config: Annotated[Path, typer.Argument(help="TOML file that says what is trained and how.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last state in the output.")
    ] = False,
    hosts: Annotated[
        str | None, typer.Option(help="auto, or HOST:PORT,INDEX/COUNT: one of several processes.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet/--no-quiet", help="No progress bar.")] = False,
) -> None:
    """Train a model on texts, on one device or many; docs/train.md."""
    import jax

    from jaxllama.sharding.hosts import is_first, several_hosts
    from jaxllama.train.config import read_config

    settings = read_config(config)
    output = Path(settings.run.output)
    compilation_cache.turn_on()
    if "f64" in (settings.model.dtype, settings.model.param_dtype):
        jax.config.update("jax_enable_x64", True)
    try:
        from jaxllama.train.run import train as run
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        raise InputError(
            f"training needs {error.name}, which is not installed; pip install 'jaxllama[train]'"
        ) from None

    with on_interrupt(lambda: _left(output)), ExitStack() as joined:
        if hosts is not None:
            joined.enter_context(libraries_on_stderr())
            joined.enter_context(several_hosts(hosts))
        speaks = is_first()
        with _bar(quiet or not speaks) as progress:
            done = run(settings, resume=resume, progress=progress)
        if speaks:
            for note in done.notes:
                print(f"note: {one_line(note)}")
            last = f"loss {done.losses[-1]:.4f}, " if done.losses else "nothing left to train, "
            print(f"{done.model or done.output}: {last}{done.steps} steps")


def _left(output: Path) -> str:
    from jaxllama.train.state import latest_step

    step = latest_step(output)
    if step is None:
        return "no state was saved"
    return f"the state after step {step} is saved in {output}; --resume goes on from it"


@contextmanager
def _bar(silent: bool) -> Iterator[Any]:
    """Yield what draws progress: steps, the loss, tokens a second."""
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=SafeConsole(stderr=True), disable=silent)
    task = bar.add_task("train", total=None, loss=0.0, speed=0.0)

    def draw(told: Progressed) -> None:
        from jaxllama.train.watch.monitor import shortly

        bar.start()  # the first time: nothing should stand above an early error
        speed = told.tokens / max(told.seconds, 1e-9)
        for line in shortly(told.warnings):
            bar.console.print(f"warning: {one_line(line)}", markup=False, highlight=False)
        bar.update(task, completed=told.step, total=told.steps, loss=told.loss, speed=speed)

    try:
        yield draw
    finally:
        if bar.live.is_started:
            bar.stop()
