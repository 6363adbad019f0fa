"""Text fit to be shown, whoever wrote it: what a terminal or a page would obey is spelled out."""

from __future__ import annotations

import re

# Control characters but the end of a line and a tab; what turns or hides the text beside it; halves
# of characters. Joiners stay, which scripts and emoji are written with.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def spell_out(text: str) -> str:
    r"""Return a text with what would be obeyed as code points: `\x1b`, `\u202e`.

    What is escaped stays as it is when it is escaped again.
    """
    return _OBEYED.sub(_code_point, text)


def one_line(text: str) -> str:
    """Return a text as `spell_out` does, with the ends of its lines spelled out, too."""
    return spell_out(text).replace("\n", "\\n")


def _code_point(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
