"""The Jinja environment of chat templates, as transformers has it: tags, filters, globals.

A template is written for that environment, so that its rules are taken over and none is added;
`tests/jaxllama/tokenizer/test_chat_differential.py` holds both to each other.

Source: `chat_template_utils.py` in Hugging Face transformers 5.23.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class Refusal(Exception):
    """What a template says when it calls `raise_exception`: it is whole, the messages are not."""


class _Generation(Extension):
    """`{% generation %}`, which marks what the assistant wrote for a trainer; text as it stands.

    Its body is a block of its own: what is set in it is not seen after it.
    """

    tags = {"generation"}  # noqa: RUF012 - Jinja's own name and type

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """Jinja's namespace without names that reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # `self` may be a name of the template's own.
        self, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"{name!r} begins with an underscore")


class _Dict:
    """`dict` to be called, and nothing of the type behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML characters.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: Any) -> None:
    raise Refusal(message)


def _environment() -> ImmutableSandboxedEnvironment:
    # Sandboxed: a template is code from a stranger. No autoescape: its output is no HTML, and
    # "&" in a prompt has to stay "&".
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda format: datetime.datetime.now().strftime(format),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


@lru_cache(maxsize=8)
def compile_template(source: str) -> jinja2.Template:
    """Compile a template; raises `jinja2.TemplateSyntaxError`."""
    return _environment().from_string(source)


@lru_cache(maxsize=8)
def literal_texts(source: str) -> tuple[str, ...]:
    """Return what a template writes by itself: its plain text and the strings in its code."""
    tree = _environment().parse(source)
    plain = [node.data for node in tree.find_all(nodes.TemplateData)]
    quoted = [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return (*plain, *quoted)
