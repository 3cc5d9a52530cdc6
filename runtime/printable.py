"""Texts that others wrote, made fit to show.

Owns: which characters may not reach a terminal or a log, and how they are written
instead. Must not: shorten or mask anything.

A name comes from a client or a store; printed as it is, it could begin a line of its
own, colour a terminal, or reorder what is read (CWE-117, CWE-150).
"""

import re

# C0, DEL, C1, bidirectional controls, line and paragraph separators, BOM, surrogates.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def one_line(text: str, keep: str = "") -> str:
    """The text with control characters escaped as Python writes them, save `keep`."""

    def escape(match: re.Match[str]) -> str:
        char = match[0]
        return char if char in keep else char.encode("unicode_escape").decode("ascii")

    return _UNPRINTABLE.sub(escape, text)
