"""What a model and a version may be called.

Owns: the one rule for names that come from outside. Must not: touch a store, a file or
the wire. A name that passes is safe as one path component, one metric label and one
word of a log line: plain ASCII, no separator, never `.` or `..`, never hidden.
"""

import re

NAME_RULE = "letters, digits, '.', '_' and '-', 1 to 253 of them, not starting with '.'"
"""The rule in words, for whoever refuses a name (and must not echo it)."""

VERSION_RULE = "an integral value >= 0 without leading zeros"
"""The rule in words. Decimal, because clients compute with versions."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}")

# 18 digits: every such number fits the signed 64 bits that clients parse it into.
_VERSION = re.compile(r"0|[1-9][0-9]{0,17}")


def valid_name(name: str) -> bool:
    """True if `name` may be looked for in a store."""
    return _NAME.fullmatch(name) is not None


def valid_version(version: str) -> bool:
    """True if `version` names exactly one version (empty does not)."""
    return _VERSION.fullmatch(version) is not None
