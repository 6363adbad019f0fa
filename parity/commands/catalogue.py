"""What `parity explain --list` lists: each name that the command knows, with a line about it."""

from __future__ import annotations

import re
from collections.abc import Callable

SCENARIOS = {
    "causal": "one row of running text, special tokens strewn in; 503 tokens",
    "long_positions": "rows that start past position 8192, where frequencies are scaled",
    "right_padded": "a ragged batch, pads behind",
    "left_padded": "a ragged batch, pads before",
    "packed": "several documents in a row, positions starting anew in each",
    "windowed": "a token sees so many before it and no more",
    "mixed_lengths": "pads behind the prompt, then real tokens in every row",
}
MODES = {
    "free": "on its own values, as in use",
    "isolated": "each operator on the reference's values",
    "decode": "through the cache, call by call",
    "grad": "the loss and its gradients",
    "step": "parameters after a step of training",
    "generate": "what is written, token by token",
    "tokens": "the tokenizer and its chats",
}
# Of a tap of a result, in `--json` under `taps`; the second half are facts of some taps.
TAP_METRICS = {
    "error": "of a token: norm of the difference over the reference's norm",
    "noise": "the same of honest variants of the reference",
    "rho": "error over noise, which is held to the limit",
    "peak_rho": "rho of the largest single element",
    "kl_max": "logits: the largest Kullback-Leibler divergence, nats",
    "shift": "logits: what is added to all of a token's, which changes nothing",
    "range": "logits: largest minus smallest change of a token's",
    "top1_flips": "logits: tokens whose likeliest next token is another",
    "unexplained_flips": "logits: of them those beyond rounding",
    "row_sum_error": "attention: the largest distance of a row's sum from 1",
    "total_variation": "attention: the largest share of weight that is moved",
}
KINDS = ("scenarios", "modes", "causes", "rules", "metrics")
_ATTRIBUTE = re.compile(r"^ {8}(\w+(?:, \w+)*): (.*(?:\n {10,}.*)*)", re.MULTILINE)


def listed(kind: str) -> dict[str, str]:
    """Return the names of one of `KINDS`, each with a line about it."""
    return _LISTS[kind]()


def _causes() -> dict[str, str]:
    from parity.diagnose.cause import catalogue

    return {name: one.cause.title for name, one in sorted(catalogue().items())}


def _rules() -> dict[str, str]:
    from parity.health.rule import catalogue as health
    from parity.lint.rule import catalogue as lint

    found = {name: one.rule.name for name, one in lint().items()}
    return found | {name: one.RULE.title for name, one in health().items()}


def _metrics() -> dict[str, str]:
    """Return figures of taps, of `parity health` and of `parity quality`."""
    from parity.health.metrics.attention import HeadFigures
    from parity.health.metrics.gradients import GradientFigures
    from parity.health.metrics.states import StateFigures
    from parity.quality.measures import NAMES

    found = dict(TAP_METRICS)
    for figures in (HeadFigures, StateFigures, GradientFigures):
        for names, about in _ATTRIBUTE.findall(figures.__doc__ or ""):
            said = f"health: {' '.join(about.split())}"
            found |= dict.fromkeys(re.split(r", ", names), said)
    return found | dict.fromkeys(NAMES, "quality: see docs/quality.md")


_LISTS: dict[str, Callable[[], dict[str, str]]] = {
    "scenarios": lambda: SCENARIOS,
    "modes": lambda: MODES,
    "causes": _causes,
    "rules": _rules,
    "metrics": _metrics,
}
