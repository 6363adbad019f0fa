"""Gradients of somebody else's model: one backward pass, put under canonical names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError, join_problems
from parity.scenarios import Inputs
from parity.subjects.base import Arrays
from parity.subjects.framework import Framework, Gradients
from parity.subjects.layouts import Tap, canonical, kind_of, layer_of, sizes_of
from parity.subjects.names import Parameters, parameters_of
from parity.subjects.shown import pattern
from parity.subjects.watch import Seen
from parity.taps import GRAD_EMBED, GRAD_TAPS, split_name

# Of what the call returns and a scenario, the loss.
Loss = Callable[[Any, Inputs], Any]
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
    """How a module is differentiated.

    Args:
        module: whose gradients.
        framework: what it is written in.
        names: of its parameters.
        look: runs it.
        loss: what is differentiated; None for the mean cross-entropy of the logits seen.
        config: of the checkpoint.

    Raises:
        InputError: parameters that the module does not have, or that are none of a Llama's.
    """

    def __init__(
        self,
        module: Any,
        framework: Framework,
        names: Parameters,
        look: Look,
        loss: Loss | None,
        config: LlamaConfig,
    ) -> None:
        self._module, self._framework, self._look, self._loss = module, framework, look, loss
        self._config = config
        self._parameters = _found(names, framework, module, config.num_hidden_layers)

    def kinds(self, named: set[str]) -> set[str]:
        """Return the kinds of taps it shows.

        Args:
            named: the kinds that a forward pass shows.
        """
        parameters = {f"grad.{kind_of(one.tap)}" for one in self._parameters}
        return {"loss"} | parameters | {f"grad.{kind}" for kind in named} & set(GRAD_TAPS)

    def by_stage(self, inputs: Inputs) -> Iterator[Arrays]:
        """Yield gradients as `parity.subjects.base.DifferentiableSubject` orders them."""
        taps = self._taps(inputs)
        layers = self._config.num_hidden_layers
        for stage in range(layers + 2):
            yield {name: taps.pop(name) for name in list(taps) if _stage(name, layers) == stage}

    def _taps(self, inputs: Inputs) -> Arrays:
        sizes = sizes_of(self._config, inputs)
        with self._framework.settings():
            names = [one.own for one in self._parameters]
            found = self._framework.gradients(
                self._module, names, lambda module, seen: self._loss_of(module, inputs, seen)
            )
            return self._named(found, sizes)

    def _loss_of(self, module: Any, inputs: Inputs, seen: Seen) -> Any:
        """Run the module and return its loss; what has a gradient is handed on."""
        shown: dict[str, Any] = {}

        def keep(tap: Tap, value: Any) -> Any:
            if tap.name in shown:
                raise InputError(f"names: {tap.name} was shown twice in one pass")
            if f"grad.{kind_of(pattern(tap))}" in GRAD_TAPS:
                value = seen(tap, value)
            shown[tap.name] = (value, tap) if tap.name == "logits" else None
            return value

        result = self._look(module, inputs, keep)
        if self._loss is not None:
            return self._loss(result, inputs)
        if "logits" not in shown:
            raise InputError("parameters: nothing shows the logits to take the loss of; name them")
        sizes = sizes_of(self._config, inputs)
        value, layout = shown["logits"]
        logits = canonical(value, layout, sizes, self._framework.permute)
        return self._framework.loss(logits, inputs)

    def _named(self, found: Gradients, sizes: Mapping[str, int]) -> Arrays:
        """Return gradients under canonical names, in canonical layouts."""
        to_numpy = self._framework.to_numpy
        taps = {"loss": to_numpy(found.loss)}
        for one in self._parameters:
            whole = to_numpy(found.parameters.pop(one.own))
            for layer in one.layers:
                array, tap = (whole, one.tap) if layer is None else layer_of(whole, one.tap, layer)
                name = tap.name if layer is None else tap.name.replace("{i}", str(layer))
                taps[f"grad.{name}"] = canonical(array, tap, sizes)
        for tap, value in found.taps:
            taps[f"grad.{tap.name}"] = canonical(to_numpy(value), pattern(tap, "grad."), sizes)
        return taps


def _stage(name: str, layers: int) -> int:
    """Return when a gradient is due: from the head's down to the embedding's."""
    kind, layer = split_name(name)
    if layer is not None:
        return layers - layer
    return layers + 1 if kind in GRAD_EMBED else 0


def _found(
    names: Parameters, framework: Framework, module: Any, layers: int
) -> Sequence[_Parameter]:
    """Return the parameters that are named; all that the module lacks in one error."""
    there, found = set(framework.parameters(module)), []
    for own, tap in parameters_of(names).items():
        if "{i}" in own:
            found += [_Parameter(own.replace("{i}", str(i)), tap, (i,)) for i in range(layers)]
        else:
            held: Sequence[int | None] = range(layers) if "{i}" in tap.name else [None]
            found.append(_Parameter(own, tap, tuple(held)))
    lacking = [one.own for one in found if one.own not in there]
    if lacking:
        some = ", ".join(sorted(there)[:3])
        title = f"parameters: {type(module).__name__} has none of that name (it has {some}, ...)"
        raise InputError(join_problems(title, lacking[:20]))
    return found
