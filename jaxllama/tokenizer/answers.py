"""The side of a tokenizer that its own process runs: all that the libraries read and do.

They are native code without limits: an expression of a tokenizer.json may take for ever, a rule all
memory, and what they panic of they print themselves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jaxllama.errors import CheckpointError, JaxLlamaError
from jaxllama.tokenizer.backend import Parts
from jaxllama.tokenizer.json_file import read_json_file
from jaxllama.tokenizer.meta_chat import MetaChat
from jaxllama.tokenizer.model_file import read_model_file
from jaxllama.tokenizer.model_writing import write_model_file
from jaxllama.tokenizer.template_chat import TemplateChat

if TYPE_CHECKING:
    from jaxllama.config import LlamaConfig

# Tokenizers that are kept: two checkpoints are compared.
_KEPT = 2
_opened: OrderedDict[str, Parts] = OrderedDict()


def read(found: Mapping[str, bytes], source: str, config: LlamaConfig | None) -> Parts:
    """Read a tokenizer; see `Tokenizer.from_files`."""
    if "tokenizer.json" in found:
        return read_json_file(found, source, config)
    if "tokenizer.model" in found:
        return read_model_file(found["tokenizer.model"], source)
    raise CheckpointError(f"{source}: holds neither tokenizer.json nor tokenizer.model")


def answer(action: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a tokenizer gives.

    Args:
        action: `open`, and what is asked of an open one; or `write`, which needs none.
        name: of the tokenizer from when it is opened on.
        given: arguments of the function that is asked for.

    Returns:
        `given`, its result; `unknown`, where no tokenizer of that name is open (any more);
        `error`, the class and the words of one; or `failed`, of one that is a fault in here.

    Raises:
        MemoryError: there is none left.
    """
    try:
        if action == "write":
            return {"given": write_model_file(**given).decode("ascii")}
        if action == "open":
            _opened[name] = parts = read(**given)
            while len(_opened) > _KEPT:
                _opened.popitem(last=False)
            return {"given": summary(parts)}
        if name not in _opened:
            return {"unknown": True}
        _opened.move_to_end(name)
        ask: Callable[..., Any] = getattr(_opened[name].backend, action)
        return {"given": ask(**given)}
    except JaxLlamaError as error:
        return {"error": [type(error).__name__, error.marked]}
    except MemoryError:
        raise
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def summary(parts: Parts) -> dict[str, Any]:
    """Return all of a tokenizer's parts but its backend, as JSON holds them."""
    plain = {name: value for name, value in vars(parts).items() if name not in ("backend", "chat")}
    chat = parts.chat
    if isinstance(chat, MetaChat):
        return {**plain, "meta": dict(chat.specials)}
    if isinstance(chat, TemplateChat):
        added = chat.added
        listed = {
            "ids": dict(added.ids),
            "special": list(added.special),
            "control": None if added.control is None else list(added.control),
        }
        return {
            **plain,
            "templates": dict(chat.templates),
            "variables": dict(chat.variables),
            "added": listed,
        }
    return plain
