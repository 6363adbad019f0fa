"""The run-time checker that the tests put on every annotated function of both packages."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintForwardRefException, BeartypeDecorHintException

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
