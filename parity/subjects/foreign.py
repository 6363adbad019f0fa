"""Implementations not written here as subjects: NNX modules, PyTorch modules, any function.

How to use these is told in README.md beside this file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import numpy as np

from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError, join_problems
from parity.scenarios import Inputs
from parity.subjects.names import Names, Site, Tap, kind_of, sites, sizes_of
from parity.subjects.staged import StagedRun, Stages
from parity.subjects.watch import Shown, Target, Watch
from parity.taps import AXES, flow_key

Call = Callable[[Any, Inputs], Any]


class Foreign:
    """Another implementation with a map of names; see `parity.subjects.base.Subject`.

    Attributes:
        absent: every kind of tap that is not in the map.
    """

    def __init__(
        self,
        name: str,
        dtype: str,
        config: LlamaConfig,
        places: list[Site],
        internal_dtype: str | None,
        can_force: bool,
        forward: Callable[[Watch, Inputs], None],
        targets: list[Target],
        arrays: tuple[Callable[[Any], np.ndarray], Callable[[np.ndarray, Any], Any]],
    ) -> None:
        self.name, self.dtype, self.can_force = name, dtype, can_force
        self.internal_dtype = internal_dtype or ("f64" if dtype == "f64" else "f32")
        named = {kind_of(tap) for site in places for call in site.calls for tap in call}
        self.absent = frozenset(AXES) - named
        self._config, self._forward = config, forward
        self._targets, self._arrays = targets, arrays

    def start(self, inputs: Inputs) -> StagedRun:
        layers = self._config.num_hidden_layers

        def forward(stages: Stages) -> None:
            sizes = sizes_of(self._config, inputs)
            watch = Watch(self._targets, stages, layers, sizes, inputs.mask, *self._arrays)
            stages.begin()
            self._forward(watch, inputs)
            watch.finish()

        return StagedRun(forward, layers, recorder=Shown)


def from_nnx(
    module: Any,
    *,
    names: Names,
    call: Call,
    config: LlamaConfig,
    dtype: str = "f32",
    internal_dtype: str | None = None,
    name: str | None = None,
) -> Foreign:
    """Make a subject of a Flax NNX module. It is run as it is, operation by operation.

    Args:
        module: with its weights, in the dtype it is to be judged at.
        names: from places in the module to canonical taps; see `parity.subjects.names.sites`.
        call: runs the module on a scenario: `(module, inputs) -> result`.
        config: of the checkpoint; says the number of layers and the lengths of axes.
        dtype: `f64`, `f32` or `bf16`: of weights and activations.
        internal_dtype: of norms, rotations and softmax; float32 at least if not given.
        name: in reports; the class's if not given.

    Raises:
        InputError: names that the module does not have, or that are no canonical taps.
    """
    import jax

    def settings() -> Iterator[AbstractContextManager[Any]]:
        # Settings of JAX belong to a thread, and the pass has one of its own.
        yield jax.enable_x64(dtype == "f64")
        yield jax.default_matmul_precision("highest")

    def to_numpy(value: Any) -> np.ndarray:
        if isinstance(value, jax.core.Tracer):
            raise InputError(
                "names: a value is inside a JAX transformation (jit, scan, remat) that it cannot "
                "be taken out of; map what goes in and out of it, or run it under jax.disable_jit"
            )
        return np.asarray(value)

    def like(array: np.ndarray, value: Any) -> Any:
        return jax.numpy.asarray(array.astype(value.dtype))

    return _module(
        module, "__call__", names, call, config, dtype, internal_dtype, name, settings,
        (to_numpy, like),
    )  # fmt: skip


def from_torch(
    module: Any,
    *,
    names: Names,
    call: Call,
    config: LlamaConfig,
    dtype: str = "f32",
    internal_dtype: str | None = None,
    name: str | None = None,
) -> Foreign:
    """Make a subject of a PyTorch module.

    Args:
        module: with its weights, in the dtype it is to be judged at.
        names: from places in the module to canonical taps; see `parity.subjects.names.sites`.
        call: runs the module on a scenario: `(module, inputs) -> result`.
        config: of the checkpoint; says the number of layers and the lengths of axes.
        dtype: `f64`, `f32` or `bf16`: of weights and activations.
        internal_dtype: of norms, rotations and softmax; float32 at least if not given.
        name: in reports; the class's if not given.

    Raises:
        InputError: names that the module does not have, or that are no canonical taps.
    """
    import torch

    from parity.subjects.torch_arrays import to_numpy, to_torch

    def settings() -> Iterator[AbstractContextManager[Any]]:
        yield torch.no_grad()

    def like(array: np.ndarray, value: Any) -> Any:
        # A copy: a module that works in place would write into the gold's own memory.
        return to_torch(np.ascontiguousarray(array)).to(value.dtype, copy=True)

    return _module(
        module, "forward", names, call, config, dtype, internal_dtype, name, settings,
        (to_numpy, like),
    )  # fmt: skip


def from_callable(
    function: Callable[[Inputs], Mapping[str, Any]],
    *,
    names: Names,
    config: LlamaConfig,
    dtype: str = "f32",
    internal_dtype: str | None = None,
    name: str | None = None,
) -> Foreign:
    """Make a subject of a function that returns intermediates by names of its own.

    Args:
        function: from a scenario to arrays by name; compiled or not, in any framework whose arrays
            NumPy can read.
        names: from the function's names to canonical taps, with `{i}` for the layer in both.
        config: of the checkpoint; says the number of layers and the lengths of axes.
        dtype: `f64`, `f32` or `bf16`: of weights and activations.
        internal_dtype: of norms, rotations and softmax; float32 at least if not given.
        name: in reports; the function's if not given.

    Raises:
        InputError: names that are no canonical taps.
    """
    places = sites(names)
    layers = config.num_hidden_layers

    def forward(watch: Watch, inputs: Inputs) -> None:
        with ExitStack() as stack:
            _with_x64(stack, dtype)
            shown = function(inputs)
            taps: list[tuple[Tap, Any]] = []
            for place, site in zip(names, places, strict=True):
                for layer in range(layers) if "{i}" in place else [0]:
                    value = shown.get(place.replace("{i}", str(layer)))
                    if value is None:
                        continue  # neither shown nor declared absent: the verdict stays open
                    for tap in site.calls[0]:
                        full = tap.name.replace("{i}", str(layer))
                        taps.append((Tap(full, tap.axes, tap.item), value))
            for tap, value in sorted(taps, key=lambda pair: flow_key(pair[0].name)):
                watch.result(tap, value)

    called = name or str(getattr(function, "__name__", "function"))
    return Foreign(
        called, dtype, config, places, internal_dtype, False, forward, [],
        (np.asarray, lambda array, value: value),
    )  # fmt: skip


def _with_x64(stack: ExitStack, dtype: str) -> None:
    """Set JAX up for a pass in this thread, where JAX is there at all."""
    try:
        import jax
    except ModuleNotFoundError:
        return
    stack.enter_context(jax.enable_x64(dtype == "f64"))
    stack.enter_context(jax.default_matmul_precision("highest"))


def _module(
    module: Any,
    method: str,
    names: Names,
    call: Call,
    config: LlamaConfig,
    dtype: str,
    internal_dtype: str | None,
    name: str | None,
    settings: Callable[[], Iterator[AbstractContextManager[Any]]],
    arrays: tuple[Callable[[Any], np.ndarray], Callable[[np.ndarray, Any], Any]],
) -> Foreign:
    places = sites(names)
    whole = [tap for s in places if not s.path and not s.function for tap in s.calls[0]]
    inner = [site for site in places if site.path]
    targets = _targets(module, method, inner, config.num_hidden_layers)

    def forward(watch: Watch, inputs: Inputs) -> None:
        with ExitStack() as stack:
            for setting in settings():
                stack.enter_context(setting)
            with watch.watching():
                result = call(module, inputs)
            for tap in sorted(whole, key=lambda one: flow_key(one.name)):
                watch.result(tap, result)

    called = name or type(module).__name__
    return Foreign(called, dtype, config, places, internal_dtype, True, forward, targets, arrays)


def _targets(module: Any, method: str, places: list[Site], layers: int) -> list[Target]:
    """Find what the names name; all that is missing in one error."""
    found, problems = [], []
    for site in places:
        for layer in range(layers) if "{i}" in site.path else [None]:
            path = site.path.replace("{i}", str(layer))
            try:
                found.append(_target(module, method, path, layer, site))
            except (AttributeError, KeyError, IndexError, TypeError, ImportError, ValueError):
                kind = "no function or method" if site.function else "no module"
                problems.append(f"{path}: {kind} of that name in {type(module).__name__}")
    if problems:
        raise InputError(join_problems("names", problems[:20]))
    return found


def _target(module: Any, method: str, path: str, layer: int | None, site: Site) -> Target:
    if not site.function:
        inner = _walk(module, path)
        if not callable(inner) or isinstance(inner, type):
            raise TypeError(path)
        return Target(type(inner), method, inner, layer, site)
    head, _, last = path.rpartition(".")
    try:
        instance = _walk(module, head) if head else module
        if not callable(getattr(type(instance), last)):
            raise AttributeError(path)
        return Target(type(instance), last, instance, layer, site)
    except (AttributeError, KeyError, IndexError, TypeError):
        owner = importlib.import_module(head)
        if not callable(getattr(owner, last)):
            raise TypeError(path) from None
        return Target(owner, last, None, layer, site)


def _walk(module: Any, path: str) -> Any:
    for part in path.split("."):
        if part.isdigit() and hasattr(module, "__getitem__"):
            module = module[int(part)]
        else:
            module = getattr(module, part)
    return module
