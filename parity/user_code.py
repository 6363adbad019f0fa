"""Functions and objects of the user's own, named `module:name`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxllama.command_line.failure import is_of_memory
from jaxllama.errors import InputError, JaxLlamaError


def import_named(place: str, asker: str) -> Any:
    """Return what `module:name` names, from the current directory too, as `python -m` would.

    Args:
        place: `package.module:name`, or `module:Class.attribute`.
        asker: what to call it in an error, such as an option.

    Raises:
        InputError: no such module or name, or the module's own code failed.
    """
    module, colon, name = place.partition(":")
    if not (module and colon and name):
        raise InputError(f"{asker} {place!r}: expected module:name")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        known = isinstance(error, ImportError | AttributeError | ValueError)
        said = first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{asker} {place}: {said}; name it as module:name, the module being found from"
            " here or on PYTHONPATH"
        ) from error
    return found


def check_callable(found: Any, asker: str, how: str, *arguments: Any) -> None:
    """Refuse what cannot be called as it is going to be.

    Args:
        found: the user's.
        asker: what to call it.
        how: the call, in words.
        arguments: of the call.

    Raises:
        InputError: it is no function, or takes other arguments.
    """
    if not callable(found):
        raise InputError(f"{asker}: a {type(found).__name__}, expected a function; it is {how}")
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # what is written in C may hide its signature
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise InputError(f"{asker}: it is {how}, which it does not take ({error})") from error


def call(function: Callable[..., Any], asker: str, how: str, *arguments: Any) -> Any:
    """Call a function of the user's; what it raises is said in one line.

    Raises:
        InputError: whatever it raised.
    """
    try:
        return function(*arguments)
    except (JaxLlamaError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if is_of_memory(error):
            raise
        raise InputError(
            f"{asker}: it raised {type(error).__name__}: {first_line(error)}{_place_of(error)}; "
            f"it is {how}"
        ) from error


def _place_of(error: BaseException) -> str:
    """Return the line of the user's function where an error began, if it got that far."""
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    if trace is None:
        return ""
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return (str(error).strip() or "no message").splitlines()[0][:200]
