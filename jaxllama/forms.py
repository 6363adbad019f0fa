"""The forms in which a model holds its layers, and which part of an array is which parameter.

One model, the same weights and the same code of a layer, held in one of three ways:

- `stacked`: one layer whose weights carry a leading layer axis. The pass scans over it: compile
  time does not grow with depth, and one array of a kind is easy to shard and to train. A CPU copies
  each layer's weights out of the stack before it multiplies by them.
- `unrolled`: a layer after the other, each with arrays of its own.
- `fused`: unrolled, and products of one input with several weights are one product with all of
  them, held one below the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import jax

from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError

Form = Literal["stacked", "unrolled", "fused"]
# A parameter's path in a model: attributes, and a layer's number where layers are apart.
Path = tuple[Any, ...]

# What each fused product stands for, in the order of its rows.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}

# An unrolled layer takes some 0.07 s to compile: up to this depth under ten seconds.
_MOST_UNROLLED = 128


def usual_form(config: LlamaConfig, on_mesh: bool = False) -> Form:
    """Return the form that is fastest where JAX runs: the one place where that is decided."""
    if jax.default_backend() != "cpu" or config.num_hidden_layers > _MOST_UNROLLED:
        return "stacked"
    return "unrolled" if on_mesh else "fused"  # heads of one array cannot be told apart on a mesh


def checked_form(form: str | None, config: LlamaConfig, on_mesh: bool = False) -> Form:
    """Return a form, the usual one if none is given.

    Args:
        form: as asked for.
        config: the model's.
        on_mesh: whether it lies on several devices.

    Raises:
        InputError: no such form.
    """
    if form is None:
        return usual_form(config, on_mesh)
    if form not in get_args(Form):
        raise InputError(f"form {form!r}: expected one of {', '.join(get_args(Form))}")
    return cast("Form", form)


@dataclass(frozen=True)
class Part:
    """One parameter within an array of a model.

    Attributes:
        path: of the parameter in a stacked model, such as `layers`, `mlp`, `up_proj`, `weight`.
        layer: whose it is; None of what is no layer's.
        index: where it stands in the array.
    """

    path: tuple[str, ...]
    layer: int | None
    index: int | slice


def parts_of(path: Path, config: LlamaConfig) -> Iterator[Part]:
    """Yield the parameters that an array of a model holds, in whatever form.

    Args:
        path: of the array.
        config: the model's.
    """
    if path[0] != "layers":
        yield Part(tuple(map(str, path)), None, slice(None))
    elif not isinstance(path[1], int):
        named = tuple(map(str, path))
        yield from (Part(named, layer, layer) for layer in range(config.num_hidden_layers))
    else:
        layer, *rest = path[1:]
        module, product, kind = (*map(str, rest),) if len(rest) == 3 else ("", "", "")
        if product not in FUSED:
            yield Part(("layers", *map(str, rest)), layer, slice(None))
        first = 0
        for name in FUSED.get(product, ()):
            end = first + rows_of(name, config)
            yield Part(("layers", module, name, kind), layer, slice(first, end))
            first = end


def rows_of(product: str, config: LlamaConfig) -> int:
    """Return how many numbers one of the products that are fused makes of an input."""
    if product in FUSED["gate_up_proj"]:
        return config.intermediate_size
    queries = product == "q_proj"
    heads = config.num_attention_heads if queries else config.num_key_value_heads
    return heads * config.head_dim
