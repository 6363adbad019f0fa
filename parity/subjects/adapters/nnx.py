"""NNX modules under somebody else's names: their arrays, and how they are differentiated."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr, Literal, Var

from jaxllama.errors import InputError
from jaxllama.loss import next_token_loss
from parity.inputs import Inputs
from parity.subjects.adapters.framework import Gradients, LossOf, jax_settings
from parity.subjects.adapters.layouts import Tap

INSIDE = (
    "names: a value is inside a JAX transformation (jit, scan, remat) that it cannot be taken out "
    "of; map what goes in and out of it, or run it under jax.disable_jit"
)
OUTSIDE = (
    "parameters: call= or loss= turns a value into a NumPy array or a Python number, which JAX "
    "cannot differentiate through; keep to JAX arrays"
)


class NNX:
    """See `parity.subjects.adapters.framework.Framework`.

    Args:
        dtype: what modules compute in.
    """

    method = "__call__"
    # Asked for anew by each call of `nnx.remat`, which hands on what it gives.
    transparent: Sequence[tuple[Any, str]] = ((jax, "checkpoint"), (jax, "remat"))

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def settings(self) -> AbstractContextManager[Any]:
        return jax_settings(self._dtype)

    def to_numpy(self, value: Any) -> np.ndarray:
        if isinstance(value, jax.core.Tracer):
            raise InputError(INSIDE)
        return np.asarray(value)

    def like(self, array: np.ndarray, value: Any) -> Any:
        return jax.device_put(array.astype(value.dtype))

    def identity(self, module: Any) -> Hashable:
        if not isinstance(module, nnx.Module):
            return None
        held = tuple(id(leaf) for leaf in jax.tree.leaves(nnx.state(module)))
        return (type(module), held) if held else None

    def dtypes(self, module: Any) -> Collection[str]:
        if not isinstance(module, nnx.Module):
            return set()
        leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
        return {x.dtype.name for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)}

    def permute(self, value: Any, order: list[int]) -> Any:
        return jnp.transpose(value, order)

    def parameters(self, module: nnx.Module) -> Collection[str]:
        return {_dotted(path) for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))}

    def loss(self, logits: Any, inputs: Inputs) -> Any:
        segments = None if inputs.segments is None else jax.device_put(inputs.segments)
        ids, valid = jax.device_put(inputs.tokens), jax.device_put(inputs.valid)
        return next_token_loss(logits, ids, valid=valid, segments=segments)

    def gradients(self, module: nnx.Module, names: Sequence[str], loss_of: LossOf) -> Gradients:
        graph, state = nnx.split(module)
        held = dict(nnx.to_flat_state(state))
        paths = {_dotted(path): path for path in held}
        taps: list[Tap] = []

        def seen_from(weights: dict[str, jax.Array]) -> list[jax.Array]:
            values = []

            def keep(tap: Tap, value: jax.Array) -> jax.Array:
                if value.ndim and jnp.issubdtype(value.dtype, jnp.floating):
                    taps.append(tap)
                    values.append(value)
                return value

            given = {paths[name]: held[paths[name]].replace(w) for name, w in weights.items()}
            copy = nnx.merge(graph, nnx.from_flat_state(held | given))
            return [loss_of(copy, keep), *values]

        weights = {name: held[paths[name]][...] for name in names}
        try:
            program = jax.make_jaxpr(seen_from)(weights)
        except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
            raise InputError(OUTSIDE) from error
        if any(isinstance(value, jax.core.Tracer) for value in program.consts):
            raise InputError(INSIDE)
        loss, by_weight, by_value = _differentiated(program, weights)
        return Gradients(loss, by_weight, list(zip(taps, by_value, strict=True)))


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _differentiated(
    program: ClosedJaxpr, weights: dict[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array], list[jax.Array]]:
    """Return a program's first result, and its gradients by the weights and by other results.

    A value may be used again where nobody watches, as the residual stream is beside a norm: its
    gradient is that of a nudge to the value itself, which all that use it get.

    Args:
        program: returns a scalar and the values to differentiate by.
        weights: its arguments.
    """
    values = program.jaxpr.outvars[1:]
    # One variable may be several of them: a layer's output is the next one's input.
    variables = list(dict.fromkeys(values))

    def scalar(weights: dict[str, jax.Array], nudges: list[jax.Array]) -> jax.Array:
        nudged = dict(zip(variables, nudges, strict=True))
        return _evaluated(program, jax.tree.leaves(weights), nudged)

    zeros = [jnp.zeros(one.aval.shape, one.aval.dtype) for one in variables]
    loss, (by_weight, found) = jax.value_and_grad(scalar, argnums=(0, 1))(weights, zeros)
    by_variable = dict(zip(variables, found, strict=True))
    return loss, by_weight, [by_variable[one] for one in values]


def _evaluated(
    program: ClosedJaxpr, arguments: Sequence[jax.Array], nudged: Mapping[Var, jax.Array]
) -> jax.Array:
    """Return a program's first result, with something added to some of its values."""
    jaxpr = program.jaxpr
    values: dict[Var, Any] = {}

    def read(one: Any) -> Any:
        return one.val if isinstance(one, Literal) else values[one]

    def write(variables: Sequence[Var], results: Sequence[Any]) -> None:
        for variable, result in zip(variables, results, strict=True):
            values[variable] = result + nudged[variable] if variable in nudged else result

    write(jaxpr.constvars, program.consts)
    write(jaxpr.invars, arguments)
    for equation in jaxpr.eqns:
        primitive = equation.primitive
        with equation.ctx.manager:
            given = primitive.get_bind_params(equation.params)
            result = primitive.bind(*map(read, equation.invars), **given)
        write(equation.outvars, result if primitive.multiple_results else [result])
    return read(jaxpr.outvars[0])
