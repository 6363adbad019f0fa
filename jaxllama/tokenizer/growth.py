"""How much longer a tokenizer.json can make a text: its library has no limit, and ends the process.

Rules that replace one letter by ten, ten of them in a row, make ten billion letters of one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer

from jaxllama.errors import LimitError
from jaxllama.files import limits

# Of one character, where Unicode's own rules are meant: U+FDFA becomes 18 by NFKC.
_UNICODE = {
    "NFKC": 18,
    "NFKD": 18,
    "NFC": 3,
    "NFD": 4,
    "Lowercase": 3,
    "Nmt": 1,
    "BertNormalizer": 4,
}
_LISTS = ("normalizers", "decoders")


def check_growth(tokenizer: Tokenizer, source: str) -> None:
    """Refuse rules that make a text too many times longer.

    Args:
        tokenizer: as read.
        source: what to call it in an error.

    Raises:
        LimitError: the normalizer's or the decoder's do.
    """
    for name in ("normalizer", "decoder"):
        part = getattr(tokenizer, name)
        times = 1
        for rule in _rules(json.loads(part.__getstate__())) if part is not None else ():
            times *= _times(rule)
            if times > limits.TEXT_TIMES:
                raise LimitError(
                    f"{source}: its {name} can make a text more than {limits.TEXT_TIMES} times "
                    "longer, which is not accepted"
                )


def _rules(part: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield part
    for name in _LISTS:
        for inner in part.get(name) or ():
            yield from _rules(inner)


def _times(rule: Mapping[str, Any]) -> int:
    """Return how many times longer a text may become by one rule, rounded up."""
    kind = str(rule.get("type"))
    if kind == "Replace":
        pattern, content = rule.get("pattern") or {}, len(str(rule.get("content")))
        taken = len(str(pattern.get("String", "")))
        # An expression may take nothing, and so does an empty text.
        return max(1, -(-content // taken)) if taken else content + 1
    if kind == "Prepend":
        return 1 + len(str(rule.get("prepend")))
    return _UNICODE.get(kind, 1)
