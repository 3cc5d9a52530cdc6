"""Where settings come from, and in which order they are believed.

    flag  >  HOTSET_* environment  >  TOML file  >  default

Owns: reading the three, and saying what is wrong where it was written. Must not: know
any one setting (runtime/config.py).

A flag or a key of the file that is not known is refused. A variable is not: Kubernetes
puts HOTSET_PORT and HOTSET_SERVICE_HOST of its own into every pod beside a Service
named hotset; `unknown_variables` names the rest, for a warning.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from runtime.config import PREFIX, Settings

CONFIG_VARIABLE = f"{PREFIX}CONFIG"

# What Kubernetes and Docker links write for a Service: tcp://10.0.0.1:8080. A Service
# named hotset-grpc would otherwise set our HOTSET_GRPC_PORT to that.
_SERVICE_LINK = re.compile(r"(?:tcp|udp|sctp)://", re.IGNORECASE)
_SERVICE_NAME = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_\w+)?)$")


class SettingsRefused(Exception):
    """The settings cannot be used. Each line of the message names one and says why."""


def load(
    flags: Mapping[str, object] | None = None,
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings in force. `flags`: those that were given, by field name.

    Raises SettingsRefused, whose message names what is wrong and where it stands.
    """
    sources = _sources(flags or {}, config, environ)
    try:
        return Settings.model_validate(_merged(sources))
    except ValidationError as error:
        raise SettingsRefused(_explain(error, sources)) from None


def values(
    flags: Mapping[str, object] | None = None,
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, object]:
    """What the settings in force are made from, for processes that shall have the same
    whatever becomes of the file."""
    return _merged(_sources(flags or {}, config, environ))


Sources = Sequence[tuple[str, Mapping[str, object]]]


def _sources(
    flags: Mapping[str, object], config: Path | None, environ: Mapping[str, str]
) -> Sources:
    if config is None and environ.get(CONFIG_VARIABLE):
        config = Path(environ[CONFIG_VARIABLE])
    return [
        (str(config), _read_file(config) if config is not None else {}),
        ("environment", _read_environment(environ)),
        ("flag", flags),
    ]


def _merged(sources: Sources) -> dict[str, object]:
    merged: dict[str, object] = {}
    for _, source in sources:
        merged |= source
    return merged


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """HOTSET_* variables that mean nothing to us, each with what may be meant."""
    known = [CONFIG_VARIABLE, *(PREFIX + n.upper() for n in Settings.model_fields)]
    strange = [
        name
        for name in sorted(environ)
        if name.startswith(PREFIX)
        and name not in known
        and not _SERVICE_NAME.search(name)
    ]
    return [name + _did_you_mean(name, known) for name in strange]


def _read_environment(environ: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in Settings.model_fields:
        value = environ.get(PREFIX + name.upper())
        if value is not None and not _SERVICE_LINK.match(value):
            found[name] = value
    return found


def _read_file(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SettingsRefused(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsRefused(f"--config {path} is not TOML: {error}") from None


def _explain(error: ValidationError, sources: Sources) -> str:
    """One line for each setting that was refused. No value is repeated: it may be one
    that nobody should see."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        name = str(problem["loc"][0])
        place = next((p for p, values in reversed(sources) if name in values), "")
        if problem["type"] == "extra_forbidden":
            known = list(Settings.model_fields)
            reason = "is not a setting" + _did_you_mean(name, known)
        else:
            reason = problem["msg"].removeprefix("Value error, ")
            reason = reason[:1].lower() + reason[1:]
        lines.append(f"{_written(name, place)}: {reason}")
    return "\n".join(lines)


def _written(name: str, place: str) -> str:
    """The setting as it was written where it was found."""
    if place == "flag":
        return "--" + name.replace("_", "-")
    if place == "environment":
        return PREFIX + name.upper()
    return f"{name} in {place}"


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
