"""What the readers of each format take from a file, side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxllama.checkpoint import Checkpoint, convert, open_checkpoint
from jaxllama.config import RopeScaling
from jaxllama.forms import parts_of
from parity.result import Result
from parity.runner.run import run
from parity.selftest.mutants import oracles
from parity.selftest.mutants.forms import Form, Outputs

# D = N * H, which Meta's format implies, and sizes that three ranks divide.
_SIZES = {"hidden_size": 60, "intermediate_size": 51}
_LINEAR = RopeScaling(kind="linear", factor=2.5)
_OTHER = {"hidden_size": 48, "intermediate_size": 30, "num_attention_heads": 4, "head_dim": 12}
_OTHER |= {"num_key_value_heads": 2, "num_hidden_layers": 3}


@dataclass(frozen=True)
class _File:
    """A checkpoint in a file: what of, in which format, and whether every mutant is run on it."""

    format: str
    fields: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    shards: int | None = None
    usual: bool = False


FILES = {
    "hf": _File("hf", usual=True),
    "meta": _File("meta", shards=3, usual=True),
    "model.gguf": _File("gguf", usual=True),
    "orbax": _File("orbax", usual=True),
    "hf-sharded": _File("hf", {**_OTHER, "rope_scaling": None}, "bfloat16", 3),
    "hf-wide": _File("hf", {"tie_word_embeddings": True, "rope_scaling": _LINEAR}, "float64"),
    "meta-one": _File("meta", {**_OTHER, "tie_word_embeddings": True}, "bfloat16", 1),
    "meta-replicated": _File("meta", {"num_key_value_heads": 1, "rope_scaling": None}, shards=3),
    "linear.gguf": _File("gguf", {**_OTHER, "rope_scaling": _LINEAR}, "bfloat16"),
    "tied.gguf": _File("gguf", {"tie_word_embeddings": True, "rope_theta": 1e4}, "float16"),
    "split": _File("gguf", shards=3),
    "orbax-other": _File("orbax", {**_OTHER, "tie_word_embeddings": True}, "bfloat16"),
}


def reading_forms(folder: Path) -> tuple[Form, ...]:
    """Return the files that `write_files` has written."""
    return tuple(
        Form(name, partial(_shown, folder / name), partial(_run, folder / name), file.usual)
        for name, file in FILES.items()
    )


def write_files(folder: Path) -> None:
    """Write checkpoints of all formats, of several shapes and dtypes."""
    for name, file in FILES.items():
        made = oracles.micro(**{**_SIZES, **file.fields}, dtype=file.dtype)
        convert(made, folder / name, to=file.format, shards=file.shards)


def _run(path: Path) -> Result:
    return run(path, dtypes="f64", modes="free", scenarios="causal", length=7)


def _shown(path: Path) -> Outputs:
    """Return the configuration, every tensor's bits, and those that the model is given."""
    opened = open_checkpoint(path)
    return {
        **dict(_config(opened)),
        **{name: _bits(opened.read(name)) for name in sorted(opened.tensors)},
        **dict(_loaded(opened)),
    }


def _config(opened: Checkpoint) -> Iterator[tuple[str, Any]]:
    for one in fields(opened.config):
        value = getattr(opened.config, one.name)
        if is_dataclass(value):
            for part in fields(value):
                yield f"config.{one.name}.{part.name}", getattr(value, part.name)
        else:
            yield f"config.{one.name}", value


def _bits(values: np.ndarray) -> tuple[str, tuple[int, ...], str]:
    content = np.ascontiguousarray(values)
    return values.dtype.name, values.shape, hashlib.sha256(content.tobytes()).hexdigest()


def _loaded(opened: Checkpoint) -> Iterator[tuple[str, Any]]:
    """Yield the bits of each parameter that the run's model has, under the tap that shows it."""
    with jax.enable_x64(True):
        model = oracles.subject_of(opened, "f64").model
    for path, value in nnx.to_flat_state(nnx.state(model)):
        values = np.asarray(value[...])
        for part in parts_of(path, model.config):
            name = part.path[-2]
            tap = _TAPS[name] if part.layer is None else f"layers.{part.layer}.{name}"
            yield tap, _bits(values[part.index])


_TAPS = {"embed_tokens": "embed", "norm": "norm", "lm_head": "logits"}
