"""A fault planted in the source of a function of `jaxllama`, for the length of a `with`."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakSet

import jax

from parity.selftest.mutants.patch import functions_of
from parity.selftest.mutants.rules import source_of


@contextmanager
def planted(module: str, before: str, after: str, *, compiled: bool = True) -> Iterator[None]:
    """Let every function that runs a piece of a module's source run another in its place.

    Args:
        module: its dotted name.
        before: source that is there once.
        after: what stands there instead.
        compiled: whether what JAX has traced of it must be forgotten, before and after.
    """
    source = source_of(module)
    assert source.count(before) == 1, (module, before, source.count(before))
    old, new = (_functions(text, module) for text in (source, source.replace(before, after)))
    changed = {name: code for name, code in new.items() if not _alike(code, old[name])}
    assert changed, "the edit changes no function"
    found = [one for one in _functions_of(module) if one.__code__.co_qualname in changed]
    assert found, "no function runs it"
    kept = [function.__code__ for function in found]
    for function in found:
        function.__code__ = changed[function.__code__.co_qualname]
    _forget(compiled)
    try:
        yield
    finally:
        for function, code in zip(found, kept, strict=True):
            function.__code__ = code
        _forget(compiled)


def _functions(source: str, module: str) -> dict[str, types.CodeType]:
    """Return the code of all functions of a module but those within others, by qualified name."""
    return {code.co_qualname: code for code in _inner(compile(source, f"<{module}>", "exec"))}


def _inner(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if "<locals>" not in constant.co_qualname and not constant.co_name.startswith("<"):
                yield constant
            yield from _inner(constant)


def _alike(a: types.CodeType, b: types.CodeType) -> bool:
    """Return whether two functions do the same, wherever they stand in their file."""

    def parts(code: types.CodeType) -> tuple[object, ...]:
        constants = tuple(
            parts(one) if isinstance(one, types.CodeType) else (type(one), one)
            for one in code.co_consts
        )
        return code.co_code, code.co_names, code.co_varnames, constants

    return parts(a) == parts(b)


@cache
def _functions_of(module: str) -> list[types.FunctionType]:
    """Return what a module's source has made; looked for once, for that is at all there is."""
    found = functions_of(module)
    _look()
    gc.freeze()  # no look at it again
    return found


def _forget(compiled: bool) -> None:
    """Forget what was traced of functions of both packages; what JAX has of its own it may keep."""
    if compiled:
        _look()
        for function in list(_jitted):
            function.clear_cache()


# What `jax.jit` has made of functions that are not JAX's own.
_jitted: WeakSet[Any] = WeakSet()


def _look() -> None:
    """Note what was jitted since the last look; what is frozen was looked at."""
    kind = type(jax.jit(lambda: None))
    _jitted.update(
        one
        for one in gc.get_objects()
        if type(one) is kind and not str(getattr(one, "__module__", "")).startswith("jax.")
    )
