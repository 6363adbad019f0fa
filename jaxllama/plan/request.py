"""What is to be planned, checked as a whole before anything is compiled."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import DTypeLike

from jaxllama import files
from jaxllama.config import LlamaConfig
from jaxllama.dtypes import parse
from jaxllama.errors import InputError, JaxLlamaError, argument, join_problems
from jaxllama.plan import devices
from jaxllama.plan.devices import Accelerator
from jaxllama.presets import PRESETS
from jaxllama.quantisation.choice import (
    QuantScheme,
    checked_cache_dtype,
    checked_quant,
    parse_quant,
)
from jaxllama.sharding.layout import mesh_problems
from jaxllama.sharding.mesh import MeshLike, Sizes, mesh_in_words, parse_mesh

Compiler = Literal["auto", "device", "cpu"]
# A prompt is read in calls of so many tokens of each row. From these on a GPU or TPU meets keys in
# blocks (`jaxllama.attention`): below, a map of all keys is made.
CHUNK = 2048
# Devices of a mesh: a compiler's time grows with them.
MOST_DEVICES = 1024
_DTYPES = ("bf16", "f16", "f32")
# 8b, 70b, ...: of several of a size the newest, which the table has last.
_BY_SIZE = {name.rpartition("-")[2]: name for name in PRESETS}


@dataclass(frozen=True)
class PlanRequest:
    """A plan that can be made.

    Attributes:
        model: what was asked for, in words.
        config: its numbers.
        mesh: devices along each axis; None to have one found.
        batch: rows.
        context: slots of the cache, in tokens a row.
        dtype: of weights and arithmetic.
        cache_dtype: of keys and values.
        quant: how weights are held, if in fewer bits.
        device: the accelerator; None where bytes alone are asked for.
        chunk: tokens of a row that a call of prefill reads.
        compiler: whose analysis: the device's own, the CPU's, or the first if it is installed.
    """

    model: str
    config: LlamaConfig
    mesh: Sizes | None
    batch: int
    context: int
    dtype: np.dtype
    cache_dtype: np.dtype
    quant: QuantScheme | None
    device: Accelerator | None
    chunk: int
    compiler: Compiler


def check_plan(
    model: str | os.PathLike[str] | LlamaConfig,
    *,
    mesh: MeshLike | None = None,
    batch: int = 1,
    context: int | None = None,
    dtype: DTypeLike = "bf16",
    cache_dtype: DTypeLike | None = None,
    quant: str | None = None,
    device: str | None = None,
    chunk: int | None = None,
    compiler: str = "auto",
) -> PlanRequest:
    """Return a request that can be planned, or say everything that is wrong with it.

    Args:
        model: a published model's name or size (`405b`), a checkpoint of which the configuration
            alone is read, or a configuration.
        mesh: as for `jaxllama.sharding.parse_mesh`; found for the device if not given.
        batch: rows.
        context: tokens of a row, prompt and text; the configuration's if not given.
        dtype: of weights and arithmetic.
        cache_dtype: of keys and values; `dtype` if not given.
        quant: `int8`, `int4` or `int4:GROUP`.
        device: a name of `DEVICES`.
        chunk: tokens of a row that a call of prefill reads; at most 2048 if not given.
        compiler: `auto`, `device` or `cpu`.

    Raises:
        InputError: all that cannot be, a mesh that does not divide the model among it.
        ConfigError, CheckpointError: its configuration cannot be read, and no more is wrong.
    """
    refused: list[JaxLlamaError] = []
    with _noted(refused):
        label, config = read_config(model)
    known = None if refused else config
    found = sizes = scheme = None
    with _noted(refused):
        found = None if device is None else devices.device(device)
    with _noted(refused):
        sizes = None if mesh is None else parse_mesh(mesh)
    numbers = cached = np.dtype(np.float32)
    with _noted(refused):
        numbers = cached = _dtype(dtype, "dtype")
    with _noted(refused):
        if cache_dtype is not None:
            cached = checked_cache_dtype(cache_dtype, argument("cache_dtype"))
    with _noted(refused):
        if quant is not None:
            scheme = parse_quant(quant) if known is None else checked_quant(quant, known)
    problems = [] if sizes is None else _mesh_problems(sizes, known, found)
    problems += _problems(batch, context, chunk, compiler, known)
    if compiler == "device" and device is None:
        problems.append(
            f"{argument('compiler', 'device')}: whose? name one with {argument('device')}"
        )
    if len(refused) == 1 and not problems:
        raise refused[0]
    if refused or problems:
        raise InputError(join_problems("plan", [*(one.marked for one in refused), *problems]))
    slots = context or config.max_position_embeddings or 1
    return PlanRequest(
        model=label,
        config=config,
        mesh=sizes if sizes is not None or found is not None else parse_mesh("tensor=1"),
        batch=batch,
        context=slots,
        dtype=numbers,
        cache_dtype=cached,
        quant=scheme,
        device=found,
        chunk=min(CHUNK, slots) if chunk is None else chunk,
        compiler=cast("Compiler", compiler),
    )


@contextmanager
def _noted(refused: list[JaxLlamaError]) -> Iterator[None]:
    """Go on after what is refused: the rest is to be named, too."""
    try:
        yield
    except JaxLlamaError as error:
        refused.append(error)


def _problems(
    batch: int, context: int | None, chunk: int | None, compiler: str, config: LlamaConfig | None
) -> list[str]:
    """Return what is wrong with sizes and names; of the model, as far as it is known."""
    problems = []
    for name, value in (("batch", batch), ("context", context), ("chunk", chunk)):
        if value is not None and value < 1:
            problems.append(f"{argument(name, value)}: expected a whole number above 0")
    stated = None if config is None else config.max_position_embeddings
    if config is not None:
        if context is None and stated is None:
            problems.append(f"{argument('context')}: give one; the configuration states none")
        if context is not None:
            most = f"give at most {argument('context', stated)}"
            problems += config.context_problems(context, argument("context"), most)
    slots = context or stated
    if chunk is not None and slots is not None and chunk > slots:
        problems.append(f"{argument('chunk', chunk)}: more than the context of {slots} tokens")
    if compiler not in get_args(Compiler):
        problems.append(
            f"{argument('compiler', compiler)}: expected one of {', '.join(get_args(Compiler))}"
        )
    return problems


def read_config(model: str | os.PathLike[str] | LlamaConfig) -> tuple[str, LlamaConfig]:
    """Return what a model is called, and its numbers; of a checkpoint no weight is read.

    Raises:
        InputError: nothing of that name.
        ConfigError, CheckpointError: it cannot be read.
    """
    from jaxllama.checkpoint.hf.read import CONFIG
    from jaxllama.checkpoint.open import SAMPLES, open_checkpoint

    if isinstance(model, LlamaConfig):
        return "a configuration", model
    name = str(model).lower()
    if (known := _BY_SIZE.get(name, name)) in PRESETS:
        return known, PRESETS[known]
    path = Path(model)
    if path.is_dir() and (path / CONFIG).exists():
        file = files.inside(path, CONFIG)
        return str(model), LlamaConfig.from_hf(files.read_json(file), source=str(file))
    if not path.exists() and name not in SAMPLES and "/" not in name:
        raise InputError(
            f"model {model!s}: no checkpoint is there, and no published model has that name; "
            f"there are {', '.join(_BY_SIZE)}, {', '.join(PRESETS)}, and {', '.join(SAMPLES)}"
        )
    return str(model), open_checkpoint(model).config


def _dtype(given: DTypeLike, name: str) -> np.dtype:
    found = parse(given, argument(name))
    if found.itemsize > 4:
        raise InputError(f"{argument(name)} {found}: expected one of {', '.join(_DTYPES)}")
    return found


def _mesh_problems(
    sizes: Sizes, config: LlamaConfig | None, device: Accelerator | None
) -> list[str]:
    """Return why there is no such mesh; of the model and the device, as far as they are known."""
    problems = [] if config is None else mesh_problems(sizes, config, "stacked")
    count = math.prod(sizes.values())
    if device is not None and (problem := device.slice_problem(count)) is not None:
        problems.append(problem)
    elif count > MOST_DEVICES:
        problems.append(f"takes {count} devices; give at most {MOST_DEVICES}")
    return [f"{argument('mesh', mesh_in_words(sizes))}: {one}" for one in problems]
