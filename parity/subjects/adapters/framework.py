"""What running somebody else's model takes of the framework that it is written in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from parity.inputs import Inputs
from parity.subjects.adapters.intercept import Seen
from parity.subjects.adapters.layouts import Tap

# Runs a module, which may be a copy with other parameters, and returns its loss.
LossOf = Callable[[Any, Seen], Any]


@dataclass(frozen=True)
class Gradients:
    """What a backward pass gives, in the framework's own arrays and layouts.

    Attributes:
        loss: the scalar; None where it is not shown.
        parameters: gradients by the parameters' own names.
        taps: gradients of what was seen on the way.
    """

    loss: Any
    parameters: dict[str, Any]
    taps: list[tuple[Tap, Any]]


class Values(Protocol):
    """What a pass computes in."""

    def settings(self) -> AbstractContextManager[Any]:
        """Return what a pass is run under."""

    def to_numpy(self, value: Any) -> np.ndarray:
        """Return a value as an array of the same bits."""

    def like(self, array: np.ndarray, value: Any) -> Any:
        """Return an array to put in the place of `value`, in its dtype."""


class Framework(Values, Protocol):
    """A framework of modules, and how it differentiates them.

    Attributes:
        method: of a module, what runs it.
        transparent: what moves no value and hides all that runs in it, by owner and name: it is
            left out of a pass that is watched.
    """

    method: str
    transparent: Sequence[tuple[Any, str]]

    def identity(self, module: Any) -> Hashable:
        """Return what a module shares with its copies over the same arrays; None if nothing."""

    def dtypes(self, module: Any) -> Collection[str]:
        """Return the names of the floating dtypes that a module's parameters are held in."""

    def permute(self, value: Any, order: list[int]) -> Any:
        """Return a value with its axes in another order."""

    def parameters(self, module: Any) -> Collection[str]:
        """Return the names of a module's parameters."""

    def loss(self, logits: Any, inputs: Inputs) -> Any:
        """Return the mean cross-entropy of every real token's successor."""

    def gradients(self, module: Any, names: Sequence[str], loss_of: LossOf) -> Gradients:
        """Differentiate a module's loss.

        Args:
            module: whose; left as it is.
            names: of the parameters to differentiate by.
            loss_of: runs it. What is seen on the way is differentiated by, too.
        """


@contextmanager
def jax_settings(dtype: str) -> Iterator[None]:
    """Set JAX up for a pass in this thread, where JAX is there at all.

    Settings of JAX belong to a thread, and a run's passes have one of their own.
    """
    with ExitStack() as stack:
        try:
            import jax
        except ModuleNotFoundError:
            pass
        else:
            stack.enter_context(jax.enable_x64(dtype == "f64"))
            stack.enter_context(jax.default_matmul_precision("highest"))
        yield


class Readable:
    """Arrays that NumPy can read, of whatever framework; none is put in their place.

    Args:
        dtype: what is computed in.
    """

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def settings(self) -> AbstractContextManager[Any]:
        return jax_settings(self._dtype)

    def to_numpy(self, value: Any) -> np.ndarray:
        return np.asarray(value)

    def like(self, array: np.ndarray, value: Any) -> Any:
        return value
