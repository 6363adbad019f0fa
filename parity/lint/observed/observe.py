"""Run somebody's model and collect the masks that its attention is called with.

A mask that was written down is not always the one used: it is cut, cast, merged with another, or
dropped on its way. What is caught here is what arrives: at the attention functions of PyTorch
and JAX, and at any softmax over keys, where masked scores are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from jaxllama.errors import InputError
from parity.lint.observed.call import AttentionCall
from parity.lint.observed.jax import watch_jax
from parity.user_code import call, check_callable, import_named

# Hands on every attention that runs while it is open.
Watch = Callable[[Callable[[AttentionCall], None]], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class CapturedMask:
    """A mask that several calls had in common.

    Attributes:
        call: the first of them.
        turns: the numbers of the calls, counted from 0 over the whole run.
    """

    call: AttentionCall
    turns: tuple[int, ...]

    @property
    def name(self) -> str:
        """Which calls they were, for people."""
        first, last = self.turns[0], self.turns[-1]
        together = self.turns == tuple(range(first, last + 1))
        turns = f"{first} to {last}" if together else ", ".join(map(str, self.turns[:6]))
        turns += ", ..." if not together and len(self.turns) > 6 else ""
        said = f"call {first}" if first == last else f"calls {turns}"
        return f"{said} of {self.call.function}"


def observe(place: str) -> list[CapturedMask]:
    """Call `module:function` without arguments and return the masks its attentions get.

    Raises:
        InputError: there is no such function, it failed, or no attention was seen in it.
    """
    asker, how = f"--from {place}", "called without arguments and has to run the model"
    function = import_named(place, "--from")
    check_callable(function, asker, how)
    calls: list[AttentionCall] = []
    with ExitStack() as stack:
        for watch in _watches():
            stack.enter_context(watch(calls.append))
        call(function, asker, how)
    if not calls:
        raise InputError(
            f"{asker}: no attention was seen in it; watched are torch's and JAX's"
            " scaled dot product attention, torch.nn.MultiheadAttention, and softmax over keys"
            " outside of compiled code"
        )
    return group(calls)


def group(calls: Iterable[AttentionCall]) -> list[CapturedMask]:
    """Put together the calls that had the same mask."""
    turns: dict[Any, list[int]] = {}
    first: dict[Any, AttentionCall] = {}
    for turn, one in enumerate(calls):
        dtype = one.mask.dtype.name, one.scores_dtype
        key = one.function, dtype, one.mask.shape, one.heads, one.mask.tobytes()
        first.setdefault(key, one)
        turns.setdefault(key, []).append(turn)
    return [CapturedMask(first[key], tuple(turns[key])) for key in first]


def _watches() -> list[Watch]:
    """Return what watches the frameworks that are installed."""
    watches: list[Watch] = [watch_jax]
    if find_spec("torch") is not None:  # which the function may import itself
        from parity.lint.observed.torch import watch_torch

        watches.append(watch_torch)
    return watches
