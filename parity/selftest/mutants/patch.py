"""A mutant put in the place of the code it was made of, in this process."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterator

from parity.selftest.mutants.rules import Mutant, mutated_tree


class NotLive(LookupError):
    """No function of this process runs the mutant's code."""


def install(mutant: Mutant) -> None:
    """Let every function that runs the mutant's original run the mutant.

    Whoever holds the function goes on holding it: its code alone is another. What was traced or
    compiled of it before must not be used again.

    Raises:
        NotLive: there is no such function.
        ValueError: the code does not fit its closure.
    """
    code = _code(mutant)
    found = [
        function
        for function in functions_of(mutant.module)
        if function.__code__.co_qualname == code.co_qualname
        and function.__code__.co_filename != _FILENAME
    ]
    if not found:
        raise NotLive(mutant.function)
    for function in found:
        function.__code__ = code


def functions_of(module: str) -> list[types.FunctionType]:
    """Return all functions that a loaded module's source has made, in classes and wrappers too."""
    gc.unfreeze()  # what is frozen refers to nothing
    names = vars(sys.modules[module])
    return [
        holder
        for holder in gc.get_referrers(names)
        if type(holder) is types.FunctionType and holder.__globals__ is names
    ]


_FILENAME = "<mutant>"


def _code(mutant: Mutant) -> types.CodeType:
    compiled = compile(mutated_tree(mutant), _FILENAME, "exec")
    for code in _inner(compiled):
        if code.co_qualname == mutant.function:
            return code
    raise NotLive(mutant.function)


def _inner(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _inner(constant)
