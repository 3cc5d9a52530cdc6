"""The ASGI application: gRPC methods by their path, and everything else to REST.

Owns: which of the two a request is. Must not: answer any.
"""

from collections.abc import Awaitable, Iterable, Sequence

from runtime.asgi.streaming import Streaming
from runtime.asgi.telling import OnEnd, refuse
from runtime.asgi.types import Asgi, Message, Receive, Send
from runtime.asgi.unary import Unary
from runtime.asgi.vigil import Vigil
from runtime.methods import Service
from runtime.status import Code, Status

_UNKNOWN = Status(Code.UNIMPLEMENTED, 404, "Method not found!")


class Application:
    """`services` for gRPC, `rest` for what is no gRPC; `vigil` sees the calls."""

    def __init__(
        self,
        services: Sequence[Service],
        rest: Asgi,
        vigil: Vigil,
        limit: int,
        on_end: OnEnd = lambda method, code: None,
    ) -> None:
        self._rest = rest
        self._methods: dict[str, Asgi] = {}
        for service in services:
            for method in service.methods:
                path = f"/{service.name}/{method.name}"
                kind = Streaming if method.gives_stream else Unary
                self._methods[path] = kind(path, method, limit, vigil, on_end)

    def __call__(self, scope: Message, receive: Receive, send: Send) -> Awaitable[None]:
        """A plain function: the method's own coroutine is the one that is run.

        The content type is what a web page cannot set without being asked about first
        (CORS): by its path alone any page could unload models."""
        if not is_grpc(scope["headers"]):
            return self._rest(scope, receive, send)
        method = self._methods.get(scope["path"])
        if method is not None and scope["method"] == "POST":
            return method(scope, receive, send)
        return _unknown(receive, send)


async def _unknown(receive: Receive, send: Send) -> None:
    """A client whose first message fails to go out reports that, and not the answer."""
    await receive()
    await refuse(_UNKNOWN, send)


def is_grpc(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """By the content type, for whatever else a browser may send."""
    for name, value in headers:  # no generator: every call passes here
        if name == b"content-type":
            found: bool = value.startswith(b"application/grpc")
            return found
    return False
