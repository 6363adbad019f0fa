"""The run-time checker that the tests put on every annotated function of both packages."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintForwardRefException, BeartypeDecorHintException

# Calls of a function that are checked in each process: the same code that is run a thousand times
# for a search or a selftest is not made surer by it, and took six parts of seven of the time.
CHECKED_CALLS = 5

# The numeric tower: an int where a float is annotated is right, as type checkers have it.
_CONF = BeartypeConf(is_pep484_tower=True)


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with its arguments and result checked against its annotations.

    Annotations that nothing can check at run time are passed over, and mypy checks them: names
    imported for type checkers alone, plain protocols.
    """
    try:
        checked = beartype(conf=_CONF)(function)
    except BeartypeDecorHintException:
        return function

    @functools.wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        try:
            return checked(*args, **kwargs)
        except BeartypeCallHintForwardRefException:
            return function(*args, **kwargs)

    return check


def check_first_calls() -> None:
    """Have jaxtyping check the first calls of each function, and let the others be."""
    decorate = jaxtyping.jaxtyped

    def sampled(function: Any = None, *, typechecker: Any = None) -> Any:
        if function is None:
            return functools.partial(sampled, typechecker=typechecker)
        decorated = functools.partial(decorate, typechecker=typechecker)
        if not inspect.isfunction(function):
            return decorated(function)
        return _sampled(function, decorated)

    jaxtyping.jaxtyped = jaxtyping._decorator.jaxtyped = sampled  # type: ignore[assignment]


# By code: a function within another is made anew with each of its calls. A wrapper holds its count:
# to look it up with every call, by a hash of all of the code, took half of the wrapper's time.
_left: dict[CodeType, list[int]] = {}


def _sampled(function: Callable[..., Any], decorated: Callable[..., Any]) -> Callable[..., Any]:
    left = _left.setdefault(function.__code__, [CHECKED_CALLS])
    if not left[0]:
        return function
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if not left[0]:
            return function(*args, **kwargs)
        if checked is None:  # made for what is called alone: that takes a millisecond
            checked = decorated(function)
        left[0] -= 1
        return checked(*args, **kwargs)

    return call


check_first_calls()
