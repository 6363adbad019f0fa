"""`parity.capture`: one implementation's taps, saved to be judged elsewhere."""

from __future__ import annotations

import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax

from jaxllama.checkpoint import Checkpoint, open_checkpoint
from jaxllama.checkpoint.staging import Staging
from parity.inputs import Inputs, decode_chunks
from parity.options import Dtypes, Overrides, apply_overrides, choose, override_texts
from parity.runner import environment
from parity.runner.prompt import encoder, special_ids
from parity.runner.room import CAPTURED_MAPS, check_room
from parity.scenarios import DEFAULT_SCENARIOS, SCENARIOS, Prompt, scenario, shape
from parity.subjects import select
from parity.subjects.base import (
    CachedSubject,
    CheckpointLike,
    Subject,
    require_decoding,
    unshown_names,
)
from parity.subjects.takes import nothing_taken, takes_of
from parity.taps import expected_names, split_name
from parity.trace import NOT_CAPTURED, TraceInfo, TraceWriter, file_name, weights_digest

# What a run by itself has; isolated operators need the reference beside them.
MODES = ("free", "decode")


@dataclass(frozen=True)
class _Task:
    """One trace to be made."""

    subject: Subject
    role: str
    inputs: Inputs
    mode: str


def capture(
    checkpoint: str | Path | Checkpoint,
    directory: str | Path,
    *,
    subject: select.SubjectSpec = "jaxllama",
    mesh: str | None = None,
    dtypes: Dtypes = None,
    modes: str | Sequence[str] = "free",
    scenarios: str | Sequence[str] = DEFAULT_SCENARIOS,
    overrides: Overrides = (),
    prompt: Prompt | None = None,
    length: int | None = None,
    warn: Callable[[str], None] | None = None,
) -> list[Path]:
    """Run one implementation and save every tap it shows, for `parity.compare`.

    PyTorch is needed for PyTorch's implementations alone, which read the file by parity's own
    reader where nothing is overridden. A capture of `torch` also holds the same
    model summed in another order: the noise that the other side's rounding is held to.

    Args:
        checkpoint: a directory or file of any format, `tiny`, `smollm2`, or an open checkpoint.
        directory: to be made; appears when it is complete.
        subject: as for `parity.run`.
        mesh: as for `parity.run`.
        dtypes: of `f64`, `f32`, `bf16`; by default all that the subject has. What is to serve as
            the reference needs `f64` beside the others.
        modes: of `free`, `decode`.
        scenarios: names of `parity.scenarios.SCENARIOS`, or `all`.
        overrides: changes to the subject's configuration alone, `FIELD=VALUE`, or the
            values by field.
        prompt: text or token ids in place of the built-in text.
        length: tokens per row in place of each scenario's own.
        warn: called with a sentence on names that showed nothing, which `parity.compare` will miss;
            a `UserWarning` if not given.

    Returns:
        The files written, one a dtype, scenario and mode; none in any process but the first.

    Raises:
        JaxLlamaError: the checkpoint, the prompt, an option or the directory is bad.
    """
    resolved = select.resolve_subject(subject, mesh)
    lanes = select.dtypes_of(resolved, dtypes)
    modes = choose("modes", modes, MODES)
    names = choose("scenarios", scenarios, SCENARIOS)
    # Of several processes all have the same values, and the first keeps them.
    scratch = tempfile.TemporaryDirectory() if jax.process_index() else None
    target = Path(directory) if scratch is None else Path(scratch.name) / "traces"
    staging = Staging(target, {"parity": "capture"}, overwrite=None)
    try:
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            opened = (
                open_checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
            )
            config = apply_overrides(opened.config, override_texts(overrides))
            if isinstance(resolved, select.Named):
                resolved.sharding(config)
            encode, _ = encoder(opened, prompt)
            shapes = [shape(n, encode, opened.config, prompt=prompt, length=length) for n in names]
            check_room(shapes, opened.config.num_attention_heads, maps=CAPTURED_MAPS)
            inputs = [
                scenario(
                    name,
                    encode,
                    opened.config,
                    prompt=prompt,
                    length=length,
                    specials=special_ids(opened),
                )
                for name in names
            ]
            witness = subject in select.WITNESSES and not overrides
            truth = _second_reading(checkpoint, opened) if witness else opened
            if witness:
                resolved = select.FromCheckpoint(
                    lambda _, lane: select.witness(str(subject), truth, lane)
                )
            make = select.subject_factory(resolved, opened, config)
            facts = {
                "label": opened.label,
                "config": asdict(truth.config),
                "overrides": list(override_texts(overrides)),
                "sha256": weights_digest((n, truth.read(n)) for n in sorted(truth.tensors)),
            }
            written, silent = [], dict[str, None]()
            for lane in lanes:
                one, missing = make(lane), set[str]()
                taken = _taken(one, inputs)
                runs = itertools.product(lanes, [each.name for each in taken], modes)
                together = tuple(" ".join(run) for run in runs)
                for task in _tasks(one, subject == "torch", truth, taken, modes):
                    name, lacking = _write(task, truth, staging.files, facts, together)
                    written.append(name)
                    missing |= lacking
                silent |= dict.fromkeys(unshown_names(one, missing))
        staging.commit()
        for said in silent:
            (warn or _warn)(said)
    except OSError as error:
        raise staging.unwritable(error) from error
    except BaseException:
        staging.discard()
        raise
    if scratch is not None:
        scratch.cleanup()
        return []
    return [target / name for name in written]


def _second_reading(asked: object, opened: Checkpoint) -> CheckpointLike:
    """Return what parity reads of the file, which takes libraries that jaxllama does without."""
    from parity.runner.readings import second_reading

    return second_reading(asked, opened) or opened


def _taken(subject: Subject, inputs: Sequence[Inputs]) -> list[Inputs]:
    """Return what a subject is captured on; what it does not take stands in its notes.

    Positions are as they are: the other side is captured with the same.
    """
    taken, refused = takes_of(subject).sort(inputs, recount=False)
    if not taken:
        raise nothing_taken(subject, refused)
    left = [f"{name}{NOT_CAPTURED}{why}" for name, why in refused.items()]
    return [replace(each, notes=(*each.notes, *left)) for each in taken]


def _tasks(
    subject: Subject,
    with_noise: bool,
    checkpoint: CheckpointLike,
    inputs: Sequence[Inputs],
    modes: Sequence[str],
) -> Iterator[_Task]:
    implementations = [(subject, "subject")]
    if with_noise:
        from parity.subjects.torch_reference.subject import TorchReference

        reordered = TorchReference(checkpoint, dtype=subject.dtype, variant="reordered")
        implementations.append((reordered, "variant"))
    for mode in modes:
        if mode == "decode":
            require_decoding(subject)
        for one in inputs:
            for implementation, role in implementations:
                yield _Task(implementation, role, one, mode)


def _write(
    task: _Task,
    checkpoint: CheckpointLike,
    directory: Path,
    facts: dict[str, Any],
    together: tuple[str, ...],
) -> tuple[str, set[str]]:
    """Run one subject over one scenario into a file; return its name, and taps it lacks."""
    subject, inputs = task.subject, task.inputs
    layers = checkpoint.config.num_hidden_layers
    chunks = tuple(decode_chunks(inputs)) if task.mode == "decode" else None
    name = file_name(subject.name, (subject.dtype, inputs.name, task.mode))
    seconds, missing = 0.0, set(expected_names(layers, cache=chunks is not None))
    with TraceWriter(directory / name, inputs) as writer:
        began = time.perf_counter()
        run = (
            subject.start(inputs)
            if chunks is None
            else cast(CachedSubject, subject).start_decode(inputs, chunks)
        )
        for _ in range(len(chunks or (0,)) * (layers + 2)):
            taps = run.step()
            seconds += time.perf_counter() - began
            writer.stage(taps)
            missing.difference_update(taps)
            began = time.perf_counter()
        info = _info(task, checkpoint, facts, chunks, seconds)
        writer.close(replace(info, together=together))
    return name, {tap for tap in missing if split_name(tap)[0] not in subject.absent}


def _warn(said: str) -> None:
    warnings.warn(said, UserWarning, stacklevel=3)


def _info(
    task: _Task,
    checkpoint: CheckpointLike,
    facts: dict[str, Any],
    chunks: tuple[int, ...] | None,
    seconds: float,
) -> TraceInfo:
    subject, inputs = task.subject, task.inputs
    return TraceInfo(
        subject=subject.name,
        role=task.role,
        dtype=subject.dtype,
        internal_dtype=subject.internal_dtype,
        absent=tuple(sorted(subject.absent)),
        scenario=inputs.name,
        mode=task.mode,
        chunks=chunks,
        layers=checkpoint.config.num_hidden_layers,
        inputs_sha256=inputs.digest(),
        checkpoint=facts,
        environment=environment.describe(),
        window=inputs.window,
        seconds=seconds,
        notes=inputs.notes,
    )
