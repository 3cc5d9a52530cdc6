"""What must not be shown: credentials in URLs, in texts, and those of the environment.

Owns: knowing a secret when one is written down, and what stands in its place. Must not:
decide where texts go (runtime/logs.py and runtime/config.py use it).

Two nets, because each has holes: patterns catch what looks like a credential (user and
password of a URL, signatures in its query, `token=...`), and the values of credential
variables in our own environment are caught whatever they look like.

Texts come from clients too, so every pattern is linear: bounded or possessive
repetition only, and what a name means is looked up, not matched.
"""

import re
from collections.abc import Mapping

HIDDEN = "***"

_SECRET_WORDS = frozenset(
    {
        "password", "passwd", "pwd", "passphrase", "secret", "token", "credential",
        "credentials", "authorization", "sas", "sig", "signature",
    }
)  # fmt: skip
# Looked for in names with their separators taken out, however they are written.
_SECRET_PARTS = (
    "accesskey", "accountkey", "apikey", "privatekey", "secretkey", "sharedkey",
    "storagekey", "connectionstring", "googleaccessid",
)  # fmt: skip
_SEPARATOR = re.compile(r"[-_.]")

# `scheme://user:password@host`: to the last @ of the authority, which ends at a slash.
_USERINFO = re.compile(r"://[^\s/?#@]*+(?:@[^\s/?#@]*+)*(?=@)")
# `name=value`, `name: value`, `"name": "value"`, `name=Bearer value`.
_NAMED = re.compile(r"(?<![\w.-])(?P<name>[\w.-]{1,128}+)[\"']?\s{0,3}[=:]\s{0,3}")
_VALUE = re.compile(
    r"(?:(?:bearer|basic)\s)?(?:\"[^\"]*+\"?|'[^']*+'?|[^\s,;&\"']++)", re.IGNORECASE
)
_BEARER = re.compile(r"\b(?P<name>bearer|basic)\s[\w+/=.~-]{8,}+", re.IGNORECASE)
_AWS_KEY_ID = re.compile(r"\b(?:AKIA|ASIA|AROA)[0-9A-Z]{12,128}+\b")

SHORTEST_VALUE = 8
"""Shorter values of environment variables are not looked for in texts: `true`, `root`
and the like would riddle every log line with holes."""


def names_a_secret(name: str) -> bool:
    """True if a field, parameter or variable of this name holds a credential."""
    words = _SEPARATOR.split(name.lower())
    joined = "".join(words)
    return not _SECRET_WORDS.isdisjoint(words) or any(
        part in joined for part in _SECRET_PARTS
    )


class Mask:
    """Hides credentials in texts. `mask(text)` gives a text that may be shown."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        values = {
            value
            for name, value in (environ or {}).items()
            if names_a_secret(name) and len(value) >= SHORTEST_VALUE
        }
        # Longest first, or a value that begins with another would be half hidden.
        self._values = sorted(values, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text with every credential in it replaced."""
        for value in self._values:
            text = text.replace(value, HIDDEN)
        text = _USERINFO.sub(f"://{HIDDEN}", text)
        text = _hide_assigned(text)
        text = _BEARER.sub(rf"\g<name> {HIDDEN}", text)
        return _AWS_KEY_ID.sub(HIDDEN, text)

    def __repr__(self) -> str:
        return f"<Mask of patterns and {len(self._values)} values>"


def _hide_assigned(text: str) -> str:
    """Hide the values of secret names. The value of any other name is read on: a URL
    in it may have a query of its own."""
    parts: list[str] = []
    at = 0
    while named := _NAMED.search(text, at):
        parts.append(text[at : named.end()])
        at = named.end()
        if names_a_secret(named["name"]) and (value := _VALUE.match(text, at)):
            parts.append(HIDDEN)
            at = value.end()
    parts.append(text[at:])
    return "".join(parts)
