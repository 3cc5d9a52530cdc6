"""Logs: one record, one line, whatever the names in it contain; and no secrets.

    JSON       for machines: stable keys, everything escaped
    console    for people at a terminal

Owns: how a record looks and where it goes (standard error), and which request it is
about. Must not: decide what is worth a record. What is logged through the standard
library (grpc, asyncio, uvicorn, warnings) takes the same way as our own records.

Names and texts in a record may come from a client or a store. Control characters,
line separators and bidirectional overrides are escaped, long texts are cut, before any
renderer sees them: no name can forge a second record or colour a terminal
(CWE-117).
"""

import contextlib
import logging
import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Literal, TextIO

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from runtime.printable import one_line
from runtime.secrets import HIDDEN, Mask, names_a_secret

Format = Literal["auto", "json", "console"]
Level = Literal["debug", "info", "warning", "error"]

LONGEST_TEXT = 2048
"""Characters of one field. A name may be as long as a message; a record may not."""
CUT_BEFORE_MASKING = 4 * LONGEST_TEXT
"""Characters looked at for secrets: one that the cut would halve is still hidden."""
LONGEST_TRACE = 32768
"""Characters of a stack trace. Cut in the middle: its two ends say most."""
DEEPEST = 4
WIDEST = 64
"""Levels and members of nested values that are written out."""

_FIRST = ("timestamp", "level", "event")
_TRACES = ("exception", "stack")

_about: ContextVar[tuple[str, str]] = ContextVar("about", default=("", ""))


def about(request_id: str, model: str) -> None:
    """What the records of this task are about from now on. One call a request.

    A task has a context of its own, so nothing needs to be taken back.
    """
    _about.set((request_id, model))


def configure(
    form: Format = "auto",
    level: Level = "info",
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Set up logging for the process; `auto` is console on a terminal, else JSON."""
    sink = Sink(sys.stderr if stream is None else stream)
    terminal = sink.stream.isatty()
    render: Processor = structlog.processors.JSONRenderer(default=repr)
    if form == "console" or (form == "auto" and terminal):
        render = Console(colours=terminal)
    processors: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_request,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        Clean(Mask(environ)),
        render,
    ]
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: sink,
    )
    root = logging.getLogger()
    root.handlers[:] = [TheRest(sink, processors)]
    # Libraries tell at INFO what an operator of ours does not need to know.
    root.setLevel(number if level == "debug" else max(number, logging.WARNING))
    logging.captureWarnings(True)


class Sink:
    """Where finished lines go. A stream that is gone costs lines, never requests."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._lock = threading.Lock()

    def msg(self, line: str) -> None:
        """Write one line, whole."""
        # ValueError: the stream is closed, as at the very end of a process.
        with self._lock, contextlib.suppress(OSError, ValueError):
            self.stream.write(line + "\n")
            self.stream.flush()

    debug = info = warning = error = critical = msg


class TheRest(logging.Handler):
    """Takes what libraries log to the standard library the same way as our own."""

    def __init__(self, sink: Sink, processors: Sequence[Processor]) -> None:
        super().__init__()
        self._sink = sink
        self.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                processors=[
                    structlog.stdlib.add_logger_name,
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    *processors,
                ]
            )
        )

    def emit(self, record: logging.LogRecord) -> None:
        """One record, one line."""
        self._sink.msg(self.format(record))


def add_request(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Add the request id and the model of the task, unless the record has its own."""
    request_id, model = _about.get()
    if request_id:
        event.setdefault("request_id", request_id)
    if model:
        event.setdefault("model", model)
    return event


class Clean:
    """Makes every text of a record harmless: one line, bounded, without secrets."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        """The same record, with what every record has in front."""
        first = {key: event.pop(key) for key in _FIRST if key in event}
        ordered = {**first, **event}
        return {
            self._text(key): self._trace(value)
            if key in _TRACES
            else self._value(key, value, DEEPEST)
            for key, value in ordered.items()
        }

    def _value(self, name: str, value: object, depth: int) -> object:
        if value is None or isinstance(value, (bool, int)):
            return value
        if isinstance(value, float):
            # JSON has no NaN, and a reader of the log should not fail at ours.
            return value if math.isfinite(value) else str(value)
        if names_a_secret(name):
            return HIDDEN
        if depth and isinstance(value, Mapping):
            return {
                self._text(str(k)): self._value(str(k), v, depth - 1)
                for k, v in list(value.items())[:WIDEST]
            }
        if depth and isinstance(value, (list, tuple, set, frozenset)):
            return [self._value(name, v, depth - 1) for v in list(value)[:WIDEST]]
        return self._text(value if isinstance(value, str) else repr(value))

    def _text(self, text: str) -> str:
        # Cut first: the work on a text that a client sent is bounded.
        shown = self._mask(text[:CUT_BEFORE_MASKING])[:LONGEST_TEXT]
        more = len(text) - LONGEST_TEXT
        shown = one_line(shown)
        return shown if more <= 0 else f"{shown}... ({more} characters more)"

    def _trace(self, value: object) -> str:
        text = self._mask(str(value))
        if len(text) > LONGEST_TRACE:
            half = LONGEST_TRACE // 2
            text = f"{text[:half]}\n...\n{text[-half:]}"
        return one_line(text, keep="\n")


class Console:
    """Renders for a terminal. A trace follows its record, each line of it indented, so
    that nothing but a record begins at the margin."""

    def __init__(self, colours: bool) -> None:
        self._render = structlog.dev.ConsoleRenderer(
            colors=colours, pad_event_to=0, sort_keys=False
        )

    def __call__(self, logger: WrappedLogger, name: str, event: EventDict) -> str:
        """One line, and the indented lines of a trace if there is one."""
        traces = [str(event.pop(key)) for key in _TRACES if key in event]
        lines = [str(self._render(logger, name, event))]
        for trace in traces:
            lines += [f"    | {line}" for line in trace.split("\n")]
        return "\n".join(lines)
