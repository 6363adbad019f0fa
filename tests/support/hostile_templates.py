"""Chat templates put together at random, of honest pieces and of what no honest one has."""

from __future__ import annotations

import random
from typing import Any

_HONEST = [
    "{% for m in messages %}<|head|>{{ m['role'] }}<|tail|>{{ m['content'] }}{% endfor %}",
    "{{ bos_token }}{% if add_generation_prompt %}<|head|>{% endif %}",
    "{% set ns = namespace(x=0) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{% endfor %}",
    "{{ messages | tojson(indent=2) }}",
    "{% if tools %}{{ tools | tojson }}{% endif %}",
    "{{ raise_exception('no') if messages | length > 1 }}",
    "{% macro said(m) %}({{ m.role }}){% endmacro %}{{ said(messages[0]) }}",
    "{{ strftime_now('%d %b %Y') }}",
]
_ODD = [
    "{{ x.y.z }}",
    "{{ messages[9].role }}",
    "{{ 1 / 0 }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
    "{{ (1).__add__ }}{{ self._TemplateReference__context }}",
    "{{ messages.append(1) }}",
    "{{ dict(1) }}{{ namespace(_x=1) }}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "{{ raise_exception({}.x) }}",
    "{{ raise_exception(messages) }}",
    "{{ raise_exception('\x1b[2J' * 999) }}",
    "{{ strftime_now(3) }}{{ strftime_now('\ud800') }}",
    "{{ '%s%s' % 1 }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ 'x' | attr('__class__') }}",
    "{{ messages | map('list') | list }}",
    "{{ messages | sort(attribute='x.y') | groupby('role') | list }}",
    "{{ undefined_function() }}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{{ caller() }}{{ loop.index }}{{ super() }}",
    "{% break %}",
    "{% generation %}",
    "{{ 'x' * 10**10 }}",
    "{{ [0] * 10**10 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ 'x' | center(10**10) }}",
    "{{ lipsum(n=100) }}",
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{{ " + "(" * 900 + "1" + ")" * 900 + " }}",
    "{{ " + "a+" * 3000 + "a }}",
    "{% if a %}" * 900,
    "\ud800",
    "\0",
    "{{ '\\ud800' }}",
    "{",
    "{{",
    "{%",
    "{#",
    "}}",
    "%}",
    "{{ 9" + "9" * 5000 + " }}",
    "{{ 10**99999 }}",
]
# Each takes all the time that a template has.
_ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ lipsum(999) | length }}{% endfor %}",
]


def template(rng: random.Random, *, endless: bool = False) -> Any:
    """Return a template; sometimes what stands in its place in the settings.

    Args:
        rng: that chooses.
        endless: whether it never ends by itself.
    """
    parts = [rng.choice(rng.choice([_HONEST, _ODD])) for _ in range(rng.randrange(1, 4))]
    if endless:
        parts.append(rng.choice(_ENDLESS))
    text = "".join(parts)
    if rng.random() < 0.3:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(["{{", "}}", "%}", "|", ".", "'", "", "\n"]) + text[at + 1 :]
    if rng.random() < 0.15 and not endless:
        return rng.choice(
            [{"default": text}, [text], {"x": text}, 5, True, [], {}, [{"name": text}]]
        )
    return text
