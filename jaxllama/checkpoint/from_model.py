"""A model as a checkpoint in memory, read from its parameters one tensor at a time.

What came beside the weights that a model was loaded from is remembered for it: tokenizer, chat
template, generation settings. Not on the model, where it would be part of what `jit` compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import jax
import numpy as np
from flax import nnx

from jaxllama.checkpoint.base import Checkpoint, TensorInfo
from jaxllama.checkpoint.names import ENTRIES, TABLE
from jaxllama.concrete import is_traced
from jaxllama.config import LlamaConfig
from jaxllama.config_formats.hf import HARMLESS
from jaxllama.errors import CheckpointError, InputError, join_problems
from jaxllama.forms import parts_of
from jaxllama.model import Llama

if TYPE_CHECKING:
    from jaxllama.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Beside:
    """What a checkpoint has beside weights and configuration, still unread."""

    hf_config: Mapping[str, Any]
    companions: Mapping[str, Callable[[], bytes]]
    tokenizer_loader: Callable[[], Tokenizer] | None


_BESIDE: WeakKeyDictionary[Llama, _Beside] = WeakKeyDictionary()
_UNKNOWN = (
    "no tokenizer is known of this model, which did not come whole from from_pretrained: "
    "Llama.save_pretrained(tokenizer=...) takes a checkpoint that has it"
)

_ELSEWHERE = (
    "its weights lie on devices of several hosts, which write Orbax alone, each its own part: "
    'Llama.save_pretrained(format="orbax"), called by all of them'
)


def remember(model: Llama, checkpoint: Checkpoint) -> None:
    """Remember for a model what its checkpoint has beside the weights."""
    _BESIDE[model] = _beside(checkpoint)


def _beside(checkpoint: Checkpoint) -> _Beside:
    return _Beside(checkpoint.hf_config, checkpoint.companions, checkpoint.tokenizer_loader)


def from_model(model: Llama, *, tokenizer: Checkpoint | None = None) -> Checkpoint:
    """Return a model as a checkpoint: its parameters as they are now.

    Args:
        model: its weights are brought to the host when they are read, one at a time.
        tokenizer: whose tokenizer, chat template and generation settings go with it; those it was
            loaded with if not given. A model that was split and merged has none of its own.

    Raises:
        InputError: the model is being traced, has no values here, quantised ones, or parameters of
            other names.
    """
    if model.quant is not None:
        raise InputError(
            f"the model is quantised ({model.quant}): its rounded weights, written out, would pass "
            "for the checkpoint's; save one that was loaded without quant, or convert the "
            "checkpoint itself"
        )
    stored = _stored(model)
    _check(stored, model.config)
    named = _places(stored, model.config)
    tensors: dict[str, TensorInfo] = {}
    for name, (values, index) in named.items():
        shape = jax.eval_shape(lambda whole, at=index: whole[at], values).shape
        tensors[name] = TensorInfo(shape, np.dtype(values.dtype), None)
    beside = _BESIDE.get(model) if tokenizer is None else _beside(tokenizer)
    informative = {} if beside is None else beside.hf_config
    return Checkpoint(
        path=None,
        format="memory",
        config=model.config,
        hf_config={
            **{name: value for name, value in informative.items() if name in HARMLESS},
            **model.config.to_hf(),
        },
        tensors=tensors,
        reader=lambda name: _read(name, *named[name]),
        config_source="the model's config",
        title="the model",
        notes=(_UNKNOWN,) if beside is None else (),
        problems=() if _is_here(stored) else (_ELSEWHERE,),
        companions={} if beside is None else beside.companions,
        tokenizer_loader=None if beside is None else beside.tokenizer_loader,
    )


def sharded_tensors(model: Llama) -> dict[str, jax.Array]:
    """Return a model's parameters by canonical name, on the devices where they are.

    Raises:
        InputError: as for `from_model`, but for where they are.
    """
    stored = _stored(model)
    _check(stored, model.config)
    return {
        name: values if index == slice(None) else values[index]
        for name, (values, index) in _places(stored, model.config).items()
    }


def _stored(model: Llama) -> dict[tuple[Any, ...], Any]:
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {path: variable.get_value() for path, variable in state}


def _is_here(stored: Mapping[tuple[Any, ...], Any]) -> bool:
    arrays = (one for one in stored.values() if isinstance(one, jax.Array))
    return all(one.is_fully_addressable for one in arrays)


def _places(
    stored: Mapping[tuple[Any, ...], Any], config: LlamaConfig
) -> dict[str, tuple[Any, int | slice]]:
    """Return in which array each parameter is, and where in it, by canonical name."""
    places = {
        (part.path, part.layer): (values, part.index)
        for path, values in stored.items()
        for part in parts_of(path, config)
    }
    return {
        entry.name("hf", layer): places[entry.path, layer]
        for entry in TABLE
        for layer in (range(config.num_hidden_layers) if entry.layered else [None])
        if (entry.path, layer) in places
    }


def _check(stored: Mapping[tuple[Any, ...], Any], config: LlamaConfig) -> None:
    """Refuse a model whose parameters are not there to be read, or not those of a Llama."""
    values = list(stored.values())
    if is_traced(values):
        raise InputError(
            "the model is being traced (jit, grad, vmap), so that it has no values to save; save "
            "it outside of the transformed function"
        )
    if any(isinstance(one, jax.ShapeDtypeStruct) for one in values):
        raise InputError("the model has shapes and no values (nnx.eval_shape); nothing to save")
    arrays = [one for one in values if isinstance(one, jax.Array)]
    if any(one.is_deleted() for one in arrays):
        raise InputError(
            "the model's arrays were given away (donate_argnums); save what the step returned"
        )
    problems = [
        f"{'.'.join(map(str, path))}: no parameter of a Llama; merge adapters into the weights, or "
        "save them by jaxllama.save_lora"
        for path in stored
        if any(part.path not in ENTRIES for part in parts_of(path, config))
    ]
    if problems:
        raise InputError(join_problems("the model", problems))


def _read(name: str, values: Any, index: int | slice) -> np.ndarray:
    if isinstance(values, jax.Array) and values.is_deleted():
        raise CheckpointError(f"{name}: its array was given away (donate_argnums) meanwhile")
    # A model that a traced function closes over has values all the same.
    with jax.ensure_compile_time_eval():
        return np.asarray(values[index])
