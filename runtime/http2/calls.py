"""Which way a request is answered: directly, or as an ASGI application.

Owns: that choice, and how a request looks to ASGI. Must not: read or write frames.
"""

import asyncio
from collections.abc import Mapping
from urllib.parse import unquote

import structlog
import zttp

from runtime.asgi.application import is_grpc
from runtime.asgi.types import Asgi, Message
from runtime.http2.direct import Direct
from runtime.http2.stream import CallerLeft, Stream

_log = structlog.get_logger()

_ASGI = {"version": "3.0", "spec_version": "2.3"}
_EXTENSIONS: dict[str, object] = {"http.response.trailers": {}}


class Calls:
    """`direct` answers calls with one message, by their path, `app` the others."""

    def __init__(self, direct: Mapping[bytes, Direct], app: Asgi) -> None:
        self._direct = direct
        self._app = app

    def begin(self, stream: Stream, peer: tuple[str, int] | None) -> None:
        """Answer it in a task of its own. `peer`: who asks."""
        request = stream.request
        direct = self._direct.get(request.path)
        if direct and request.method == b"POST" and is_grpc(request.headers):
            # On the loop of whoever calls: this is every predict's way.
            stream.task = asyncio.get_running_loop().create_task(direct.over(stream))
            return
        scope = scope_of(request, peer)
        answering = self._app(scope, stream.receive, stream.send)
        task = stream.task = asyncio.ensure_future(answering)
        task.add_done_callback(lambda task: _ended(stream, task))


def scope_of(request: zttp.Request, peer: tuple[str, int] | None) -> Message:
    """A request as ASGI has it."""
    path = request.path.decode("latin-1")
    return {
        "type": "http",
        "asgi": _ASGI,
        "http_version": "2",
        "scheme": "http",
        "method": request.method.decode("latin-1"),
        "path": unquote(path) if "%" in path else path,
        "raw_path": request.path,
        "query_string": request.query,
        "root_path": "",
        "headers": request.headers,
        "client": peer,
        "server": None,
        "extensions": _EXTENSIONS,
    }


def _ended(stream: Stream, task: "asyncio.Future[None]") -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, CallerLeft):
        _log.error("an answer failed", exc_info=error)
    stream.abandon()
