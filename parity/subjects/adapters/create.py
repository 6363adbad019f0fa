"""Implementations not written here as subjects: NNX modules, PyTorch modules, any function.

How to use these is told in README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from numpy.typing import DTypeLike

from jaxllama.dtypes import short_name
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.subjects.adapters.adapter import AdaptedModel, AdaptedSubject, Call, Decode
from parity.subjects.adapters.configs import ConfigLike, as_config
from parity.subjects.adapters.conventions import choose_names
from parity.subjects.adapters.framework import Framework, Gradients, Readable
from parity.subjects.adapters.gradients import Backward, Loss, of_module
from parity.subjects.adapters.intercept import CallInterceptor, Seen
from parity.subjects.adapters.layouts import Tap
from parity.subjects.adapters.names import Names, Parameters, kinds_of, sites
from parity.subjects.adapters.shown import item_of
from parity.subjects.adapters.targets import find_targets
from parity.subjects.takes import Takes
from parity.taps import flow_key


def from_nnx(
    module: Any,
    *,
    names: Names | Literal["auto"] = "auto",
    call: Call,
    config: ConfigLike,
    dtype: DTypeLike = "f32",
    internal_dtype: DTypeLike | None = None,
    name: str | None = None,
    decode: Decode | None = None,
    parameters: Parameters | None = None,
    loss: Loss | None = None,
    takes: Takes | None = None,
) -> AdaptedSubject:
    """Make a subject of a Flax NNX module. It is run as it is, operation by operation.

    Args:
        module: with its weights, in the dtype it is to be judged at.
        names: from places in the module to canonical taps; see
            `parity.subjects.adapters.names.sites`. `auto` takes those of a library that its parts
            are named as; see `parity.subjects.auto_names`.
        call: runs the module on a scenario: `(module, inputs) -> result`.
        config: of the checkpoint; says the number of layers and the lengths of axes. A
            `LlamaConfig`, a dict, a path or a configuration of transformers.
        dtype: of weights and activations: `f64`, `f32` or `bf16`, by any of their names.
        internal_dtype: of norms, rotations and softmax; float32 at least if not given.
        name: in reports; the class's if not given.
        decode: feeds some columns through the module's own cache: `(module, inputs, start, stop,
            cache) -> (result, cache)`, the cache being None at first.
        parameters: from parameters' own names, paths joined by dots, to canonical ones;
            see `parity.subjects.adapters.names.parameters_of`.
        loss: `(result, inputs) -> scalar` of what `call` returns; the mean cross-entropy of every
            real token's successor if not given.
        takes: which masks, positions and scenarios it can be given; anything if not given.

    Raises:
        InputError: names that the module does not have, or that are not canonical.
    """
    from parity.subjects.adapters.nnx import NNX

    return _module(
        module, NNX(short_name(dtype)), names, call, decode, parameters, loss,
        config=config, dtype=dtype, internal_dtype=internal_dtype, name=name, takes=takes,
    )  # fmt: skip


def from_torch(
    module: Any,
    *,
    names: Names | Literal["auto"] = "auto",
    call: Call,
    config: ConfigLike,
    dtype: DTypeLike = "f32",
    internal_dtype: DTypeLike | None = None,
    name: str | None = None,
    decode: Decode | None = None,
    parameters: Parameters | None = None,
    loss: Loss | None = None,
    takes: Takes | None = None,
) -> AdaptedSubject:
    """Make a subject of a PyTorch module.

    The arguments are those of `from_nnx`, but that parameters' own names are those of
    `named_parameters()`.
    """
    from parity.subjects.adapters.torch import Torch

    return _module(
        module, Torch(), names, call, decode, parameters, loss,
        config=config, dtype=dtype, internal_dtype=internal_dtype, name=name, takes=takes,
    )  # fmt: skip


def from_callable(
    function: Callable[[Inputs], Mapping[str, Any]],
    *,
    names: Names,
    config: ConfigLike,
    dtype: DTypeLike = "f32",
    internal_dtype: DTypeLike | None = None,
    name: str | None = None,
    decode: Callable[[Inputs, int, int, Any], tuple[Mapping[str, Any], Any]] | None = None,
    parameters: Parameters | None = None,
    gradients: Callable[[Inputs], Mapping[str, Any]] | None = None,
    takes: Takes | None = None,
) -> AdaptedSubject:
    """Make a subject of a function that returns intermediates by names of its own.

    Args:
        function: from a scenario to arrays by name; compiled or not, in any framework whose arrays
            NumPy can read.
        names: from the function's names to canonical taps, with `{i}` for the layer in both.
        config: of the checkpoint; says the number of layers and the lengths of axes. A
            `LlamaConfig`, a dict, a path or a configuration of transformers.
        dtype: of weights and activations: `f64`, `f32` or `bf16`, by any of their names.
        internal_dtype: of norms, rotations and softmax; float32 at least if not given.
        name: in reports; the function's if not given.
        decode: the same of some columns, through a cache: `(inputs, start, stop, cache) ->
            (arrays, cache)`, the cache being None at first.
        parameters: from the names of parameters, as `gradients` has them, to canonical ones; see
            `parity.subjects.adapters.names.parameters_of`.
        gradients: from a scenario to the loss, under `loss`, and its gradients by the parameters'
            names.
        takes: which masks, positions and scenarios it can be given; anything if not given.

    Raises:
        InputError: names that are not canonical, or `gradients` without `parameters` or the
            reverse.
    """
    if (parameters is None) != (gradients is None):
        raise InputError("parameters= and gradients= go together: one names what the other returns")
    places, values = sites(names), Readable(short_name(dtype))
    config = as_config(config)
    layers = config.num_hidden_layers

    def show(function: Any, compute: Callable[[Any], Any], seen: Seen) -> Any:
        shown = compute(function)
        taps: list[tuple[Tap, Any]] = []
        for place, site in zip(names, places, strict=True):
            for layer in range(layers) if "{i}" in place else [0]:
                value = shown.get(place.replace("{i}", str(layer)))
                if value is None:
                    continue  # neither shown nor declared absent: the verdict stays open
                for tap in site.calls[0]:
                    full = replace(tap, name=tap.name.replace("{i}", str(layer)))
                    taps.append((full, item_of(value, full)))
        for tap, value in sorted(taps, key=lambda pair: flow_key(pair[0].name)):
            seen(tap, value)
        return shown

    def differentiate(names: Sequence[str], inputs: Inputs) -> Gradients:
        shown = gradients(inputs) if gradients is not None else {}
        held = {name: shown[name] for name in names if name in shown}
        return Gradients(shown.get("loss"), held, [])

    backward = None
    if parameters is not None:
        backward = Backward(parameters, None, differentiate, values, config)
    implementation = AdaptedModel(
        function,
        values,
        show,
        lambda function, inputs: function(inputs),
        None if decode is None else lambda _, *columns: decode(*columns),
        backward,
        names,
    )
    return AdaptedSubject(
        implementation,
        named=kinds_of(places),
        config=config,
        dtype=short_name(dtype),
        internal_dtype=None if internal_dtype is None else short_name(internal_dtype),
        name=name or str(getattr(function, "__name__", "function")),
        can_force=False,
        takes=takes,
    )


def _module(
    module: Any,
    framework: Framework,
    names: Names | str,
    call: Call,
    decode: Decode | None,
    parameters: Parameters | None,
    loss: Loss | None,
    *,
    config: ConfigLike,
    dtype: DTypeLike,
    internal_dtype: DTypeLike | None,
    name: str | None,
    takes: Takes | None,
) -> AdaptedSubject:
    config = as_config(config)
    notes: list[str] = []
    if isinstance(names, str):
        if names != "auto":
            raise InputError(f"names={names!r}: expected a map of names, or 'auto'")
        names, *notes = choose_names(module, config.num_hidden_layers)
    places, layers = sites(names), config.num_hidden_layers
    named = kinds_of(places)
    whole = [tap for s in places if not s.path and not s.function for tap in s.calls[0]]
    inner = [site for site in places if site.path]
    find_targets(module, framework.method, inner, layers)  # refuses what is not there

    def show(module: Any, compute: Callable[[Any], Any], seen: Seen) -> Any:
        # Found anew: what is differentiated may be a copy.
        targets = find_targets(module, framework.method, inner, layers)
        watch = CallInterceptor(targets, layers, seen, framework.identity, framework.transparent)
        with watch.watching():
            result = compute(module)
        for tap in sorted(whole, key=lambda one: flow_key(one.name)):
            result = watch.result(tap, result)
        return result

    def look(module: Any, inputs: Inputs, seen: Seen) -> Any:
        return show(module, lambda module: call(module, inputs), seen)

    backward = None
    if parameters is not None:
        differentiate = of_module(module, framework, look, loss, config)
        there = framework.parameters(module)
        backward = Backward(parameters, there, differentiate, framework, config, named)
    return AdaptedSubject(
        AdaptedModel(
            module, framework, show, call, decode, backward, names, framework.dtypes(module)
        ),
        named=named,
        config=config,
        dtype=short_name(dtype),
        internal_dtype=None if internal_dtype is None else short_name(internal_dtype),
        name=name or type(module).__name__,
        can_force=True,
        takes=takes,
        notes=tuple(notes),
    )
