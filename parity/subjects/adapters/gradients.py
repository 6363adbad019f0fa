"""Gradients of somebody else's model: one backward pass, put under canonical names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError, join_problems
from parity.inputs import Inputs
from parity.subjects.adapters.framework import Framework, Gradients, Values
from parity.subjects.adapters.intercept import Seen
from parity.subjects.adapters.layouts import Tap, canonical, kind_of, layer_of, pattern, sizes_of
from parity.subjects.adapters.names import Parameters, parameters_of
from parity.subjects.base import Arrays
from parity.taps import GRAD_EMBED, GRAD_TAPS, split_name

# Of what the call returns and a scenario, the loss.
Loss = Callable[[Any, Inputs], Any]
# Of names of parameters and a scenario, the gradients.
Differentiate = Callable[[Sequence[str], Inputs], Gradients]
# Runs a module on a scenario, shows what is named of it, and returns what the call returns.
Look = Callable[[Any, Inputs, Seen], Any]


@dataclass(frozen=True)
class _Parameter:
    """One array of the module's, and what its gradient is called.

    Attributes:
        own: its name in the module.
        tap: canonical name and layout, `{i}` for the layer.
        layers: which it holds; None for one outside the layers.
    """

    own: str
    tap: Tap
    layers: tuple[int | None, ...]


class Backward:
    """What a backward pass shows under canonical names.

    Args:
        names: of the parameters.
        there: the names of all that there are; None where that shows only afterwards.
        differentiate: gives the gradients by parameters of some names.
        values: what these are.
        config: of the checkpoint.
        seen: kinds of activations that `differentiate` gives gradients of, too.

    Attributes:
        kinds: of taps that are shown.

    Raises:
        InputError: parameters that are not there, or that are none of a Llama's.
    """

    def __init__(
        self,
        names: Parameters,
        there: Collection[str] | None,
        differentiate: Differentiate,
        values: Values,
        config: LlamaConfig,
        seen: Collection[str] = (),
    ) -> None:
        self._differentiate, self._values, self._config = differentiate, values, config
        self._parameters = _expanded(parameters_of(names), config.num_hidden_layers)
        lacking = [
            one.own for one in self._parameters if there is not None and one.own not in there
        ]
        if lacking:
            some = ", ".join(sorted(there or ())[:3])
            title = f"parameters: none of that name is there, but {some}, ..."
            raise InputError(join_problems(title, lacking[:20]))
        parameters = {f"grad.{kind_of(one.tap)}" for one in self._parameters}
        self.kinds = {"loss"} | parameters | {f"grad.{kind}" for kind in seen} & set(GRAD_TAPS)

    def by_stage(self, inputs: Inputs) -> Iterator[Arrays]:
        """Yield gradients as `parity.subjects.base.DifferentiableSubject` orders them."""
        taps = self._taps(inputs)
        layers = self._config.num_hidden_layers
        for stage in range(layers + 2):
            yield {name: taps.pop(name) for name in list(taps) if _stage(name, layers) == stage}

    def _taps(self, inputs: Inputs) -> Arrays:
        sizes, to_numpy = sizes_of(self._config, inputs), self._values.to_numpy
        with self._values.settings():
            found = self._differentiate([one.own for one in self._parameters], inputs)
            taps = {} if found.loss is None else {"loss": to_numpy(found.loss)}
            for one in self._parameters:
                if one.own not in found.parameters:
                    continue  # neither shown nor declared absent: the verdict stays open
                whole = to_numpy(found.parameters.pop(one.own))
                for i in one.layers:
                    array, tap = (whole, one.tap) if i is None else layer_of(whole, one.tap, i)
                    name = tap.name.replace("{i}", str(i))
                    taps[f"grad.{name}"] = canonical(array, _of_gradient(tap), sizes)
            for tap, value in found.taps:
                like = _of_gradient(replace(pattern(tap), name=f"grad.{pattern(tap).name}"))
                taps[f"grad.{tap.name}"] = canonical(to_numpy(value), like, sizes)
        return taps


def of_module(
    module: Any, framework: Framework, look: Look, loss: Loss | None, config: LlamaConfig
) -> Differentiate:
    """Return what differentiates a module.

    Args:
        module: whose gradients.
        framework: what it is written in.
        look: runs it.
        loss: what is differentiated; None for the mean cross-entropy of the logits seen.
        config: of the checkpoint.
    """

    def loss_of(module: Any, inputs: Inputs, seen: Seen) -> Any:
        shown: dict[str, Any] = {}

        def keep(tap: Tap, value: Any) -> Any:
            if tap.name in shown:
                raise InputError(f"names: {tap.name} was shown twice in one pass")
            if f"grad.{kind_of(pattern(tap))}" in GRAD_TAPS:
                value = seen(tap, value)
            shown[tap.name] = (value, tap) if tap.name == "logits" else None
            return value

        result = look(module, inputs, keep)
        if loss is not None:
            return loss(result, inputs)
        if "logits" not in shown:
            raise InputError("parameters: nothing shows the logits to take the loss of; name them")
        value, layout = shown["logits"]
        logits = canonical(value, layout, sizes_of(config, inputs), framework.permute)
        return framework.loss(logits, inputs)

    def differentiate(names: Sequence[str], inputs: Inputs) -> Gradients:
        return framework.gradients(module, names, lambda one, seen: loss_of(one, inputs, seen))

    return differentiate


def _of_gradient(tap: Tap) -> Tap:
    """Return how the gradient of a value is laid out: of one that is scaled, by the inverse."""
    return replace(tap, scale=1 / tap.scale)


def _stage(name: str, layers: int) -> int:
    """Return when a gradient is due: from the head's down to the embedding's."""
    kind, layer = split_name(name)
    if layer is not None:
        return layers - layer
    return layers + 1 if kind in GRAD_EMBED else 0


def _expanded(names: Mapping[str, Tap], layers: int) -> list[_Parameter]:
    """Return the parameters that are named, layer by layer."""
    found = []
    for own, tap in names.items():
        if "{i}" in own:
            found += [_Parameter(own.replace("{i}", str(i)), tap, (i,)) for i in range(layers)]
        else:
            held: Sequence[int | None] = range(layers) if "{i}" in tap.name else [None]
            found.append(_Parameter(own, tap, tuple(held)))
    return found
