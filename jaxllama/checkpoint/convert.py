"""Convert a checkpoint of any format to any other: lossless, in bounded memory, all or nothing."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import DTypeLike

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.checks import head_problems, raise_problems, structure_problems
from jaxllama.checkpoint.dtypes import Loss
from jaxllama.checkpoint.gguf.quantise import Quantisation, choose_quantisation
from jaxllama.checkpoint.gguf.write import FILE, lay_out_gguf
from jaxllama.checkpoint.hf.write import hf_config, lay_out_hf
from jaxllama.checkpoint.hub import locate
from jaxllama.checkpoint.kv_heads import with_kv_heads
from jaxllama.checkpoint.lora import merge_lora
from jaxllama.checkpoint.manifest import MANIFEST, digest
from jaxllama.checkpoint.meta.directory import lay_out_meta
from jaxllama.checkpoint.open import open_checkpoint
from jaxllama.checkpoint.orbax.write import OrbaxSink
from jaxllama.checkpoint.replaced import check_replaced
from jaxllama.checkpoint.staging import refuse_links
from jaxllama.checkpoint.stream import FileSink, Progress, Sink, Written, run
from jaxllama.dtypes import parse
from jaxllama.errors import CheckpointError, InputError, argument
from jaxllama.model import Llama

Format = Literal["hf", "meta", "orbax", "gguf"]
_HASHED_BYTES = 1 << 28  # a fifth of a second
FORMATS: tuple[Format, ...] = ("hf", "meta", "orbax", "gguf")


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        target: what was written.
        format: of the target.
        nbytes: size of the weights in bytes, as written.
        seconds: it took.
        digests: of every tensor as written, by canonical name.
        losses: of each tensor that a cast or quantising changed.
        encodings: of the tensors that were quantised, such as `Q8_0`.
        resumed: tensors that an interrupted run had already written.
        notes: oddities of the source.
    """

    target: Path
    format: Format
    nbytes: int
    seconds: float
    digests: Mapping[str, str]
    losses: Mapping[str, Loss]
    encodings: Mapping[str, str]
    resumed: int
    notes: tuple[str, ...]


def convert(
    source: str | os.PathLike[str] | Checkpoint | Llama,
    target: str | os.PathLike[str],
    *,
    to: str,
    dtype: DTypeLike | None = None,
    shards: int | None = None,
    quantize: str | None = None,
    lora: str | os.PathLike[str] | None = None,
    kv_heads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Conversion:
    """Convert a checkpoint to another format.

    Nothing appears at the target until all of it is written. A conversion that was killed goes on
    where it was when it is started again in the same way.

    Args:
        source: a checkpoint of any format, or a model, see `open_checkpoint`.
        target: directory to write; for GGUF also a file whose name ends in `.gguf`.
        to: `hf`, `meta`, `orbax` or `gguf`.
        dtype: to cast the weights to; every tensor keeps its own if not given.
        shards: number of weights files (hf, gguf), or model-parallel degree (meta).
        quantize: `q8_0` or `q4_0`, for the matrices of GGUF files.
        lora: a PEFT LoRA adapter to merge into the weights: a directory, or its name on the Hub.
        kv_heads: key and value heads of the target, pooled or repeated, see
            `jaxllama.checkpoint.kv_heads`.
        overwrite: whether a checkpoint at the target is replaced; nothing else is.
        progress: called with a tensor's name, its bytes, and the bytes of all tensors; without it
            a download is quiet, too.

    Raises:
        CheckpointError: the source does not fit its configuration, a weight is NaN or infinite,
            or the target cannot be written. Then nothing is left of it.
        ConfigError, InputError: the format cannot express the model, or no such option.
    """
    if to not in FORMATS:
        expected = f"expected one of {', '.join(FORMATS)}"
        raise InputError(f"format {to!r}: {expected}", command=f"--to {to!r}: {expected}")
    form: Format = to
    if shards is not None and (form == "orbax" or not 1 <= shards <= 99):
        raise InputError(f"{argument('shards', shards)}: from 1 to 99, and not for orbax")
    if quantize is not None and form != "gguf":
        raise InputError(f"{argument('quantize', quantize)}: for gguf alone, not for {form}")
    place = Path(target)
    files.check_new_name(place)  # which no system call takes
    refuse_links(place)
    renames = _renames(form, place, shards)
    checkpoint = open_checkpoint(source, quiet=progress is None)
    adapter: Path | None = None
    if lora is not None:
        adapter, found = locate(lora, quiet=progress is None)
        checkpoint = merge_lora(checkpoint, adapter).noted(*found)
    raise_problems(checkpoint, structure_problems(checkpoint) or head_problems(checkpoint))
    if kv_heads is not None:
        checkpoint = with_kv_heads(checkpoint, kv_heads)
    dtypes = {
        name: parse(dtype) if dtype else checkpoint.tensors[name].dtype
        for name in checkpoint.tensors
    }
    quantisation = Quantisation({})
    notes: list[str] = []
    if quantize is not None:
        shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
        quantisation, notes = choose_quantisation(quantize, shapes)
        dtypes |= dict.fromkeys(quantisation.encodings, np.dtype(np.float32))
    if checkpoint.path is not None and place.resolve() in checkpoint.path.resolve().parents:
        raise InputError(
            f"{place}: {checkpoint.path}, the source, lies in it and would be removed with what it "
            "replaces; choose another target"
        )
    _check_places(renames, overwrite=overwrite)
    plan = _plan(checkpoint, form, dtypes, shards, quantize, adapter)
    total = sum(
        i.nbytes // i.dtype.itemsize * dtypes[n].itemsize for n, i in checkpoint.tensors.items()
    )
    report: Progress = _ignore if progress is None else lambda n, size: progress(n, size, total)
    started = time.monotonic()
    make_sink, left_behind = _planned(checkpoint, form, dtypes, shards, quantisation)
    written = run(
        checkpoint,
        dtypes,
        make_sink,
        place,
        plan,
        renames,
        overwrite=overwrite,
        progress=report,
        check=partial(_check_places, renames, overwrite=overwrite),
        hf_config=hf_config(checkpoint, dtypes),
        rounding=quantisation,
    )
    said = (*checkpoint.notes, *notes, *left_behind)
    seconds = time.monotonic() - started
    nbytes = written.nbytes - quantisation.saved_bytes(checkpoint.tensors)
    return _result(written, form, nbytes, seconds, quantisation, said)


def _check_places(renames: Mapping[str, Path], *, overwrite: bool) -> None:
    for place in renames.values() if overwrite else ():
        check_replaced(place)


def _ignore(name: str, nbytes: int) -> None:
    """Report nothing."""


def _result(
    written: Written,
    form: Format,
    nbytes: int,
    seconds: float,
    quantisation: Quantisation,
    notes: tuple[str, ...],
) -> Conversion:
    return Conversion(
        target=written.target,
        format=form,
        nbytes=nbytes,
        seconds=seconds,
        digests=written.digests,
        losses=written.losses,
        encodings={name: found.name for name, found in quantisation.encodings.items()},
        resumed=written.resumed,
        notes=notes,
    )


def _planned(
    checkpoint: Checkpoint,
    form: Format,
    dtypes: Mapping[str, np.dtype],
    shards: int | None,
    quantisation: Quantisation,
) -> tuple[Callable[[Path], Sink], list[str]]:
    """Plan the target's files, and say what is left out of them; refuse what cannot be written."""
    if form == "orbax":
        return lambda directory: OrbaxSink(checkpoint, dtypes, directory), []
    if form == "gguf":
        layout = lay_out_gguf(checkpoint, dtypes, shards=shards, quantised=quantisation.encodings)
    elif form == "meta":
        layout = lay_out_meta(checkpoint, dtypes, shards=shards)
    elif form == "hf":
        layout = lay_out_hf(checkpoint, dtypes, shards=shards)
    else:
        assert_never(form)
    return lambda directory: FileSink(layout, directory), layout.notes


def _renames(form: Format, target: Path, shards: int | None) -> dict[str, Path]:
    """Return where staged files go; what makes the target loadable goes last."""
    if form != "gguf" or target.suffix != ".gguf":
        return {".": target}
    if shards is not None:
        raise InputError(f"{target}: {shards} files need a directory; give one as the target")
    if target.is_dir():
        raise CheckpointError(f"{target}: is a directory, expected a file to write")
    manifest = f"{target.name}.{MANIFEST}"
    return {manifest: target.with_name(manifest), FILE: target}


def _plan(
    checkpoint: Checkpoint,
    form: Format,
    dtypes: Mapping[str, np.dtype],
    shards: int | None,
    quantize: str | None,
    adapter: Path | None,
) -> dict[str, Any]:
    """Describe a conversion such that an equal description gives an equal target."""
    return {
        "source": _identity(checkpoint),
        "to": form,
        "dtypes": {name: dtype.name for name, dtype in dtypes.items()},
        "shards": shards,
        "quantize": quantize,
        "lora": [_state(file) for file in sorted(adapter.iterdir())] if adapter else None,
        "config": checkpoint.config.to_hf(),
    }


def _identity(checkpoint: Checkpoint) -> list[Any]:
    """Return what tells a source from any other: its files' states, or its weights' digests."""
    path = checkpoint.path
    if path is not None:
        found = sorted(f for f in path.rglob("*") if f.is_file())
        if path.is_file():  # with its other parts
            found = sorted({path, *(i.file for i in checkpoint.tensors.values() if i.file)})
        return [_state(file) for file in found]
    if checkpoint.nbytes <= _HASHED_BYTES:
        return [digest(checkpoint.read(name)) for name in checkpoint.tensors]
    return [secrets.token_hex()]  # made as it is read, and never resumed


def _state(file: Path) -> list[Any]:
    status = file.stat()
    return [str(file.resolve()), status.st_size, status.st_mtime_ns]
