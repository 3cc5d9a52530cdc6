"""The border between grpc.aio and everything else.

Owns: that no exception, of a service or of a parser, reaches grpc.aio uncaught: it
would send the exception's text to the client. Must not: decide codes or texts
(runtime/status.py), or know what a method does.

Parsing and serialising are done here too, inside the same `try`: what is wrong with a
request's bytes is then the caller's INVALID_ARGUMENT, not an error of grpc's own.

A cancelled call must stay cancelled: CancelledError is no Exception, passes through,
and must (grpc #43360: a handler that returns normally instead leaks its call).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from runtime.errors import BadRequest
from runtime.failures import forget_frames
from runtime.methods import Method
from runtime.status import DETAILS_KEY, Code, answer_to

# Any: grpc's own signatures are generic over messages that nobody here looks into.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Parse = Callable[[bytes], Any]
_OnEnd = Callable[[str, Code], None]

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ErrorBorder:
    """Makes the handlers of all methods. `on_end` is told how each call ended: its
    method's path and code.

    No interceptor of grpc's: those are asked anew for every call, which takes two more
    coroutines to find the handler that was found before.
    """

    def __init__(self, on_end: _OnEnd = lambda method, code: None) -> None:
        self._on_end = on_end
        self.calls = 0
        """Calls that have arrived, of any kind."""

    def handler(self, service: str, method: Method) -> _Handler:
        """What grpc calls for a method; all of it takes and gives bytes."""
        border = _Border(self, f"/{service}/{method.name}", method, self._on_end)
        if not method.gives_stream:
            return grpc.unary_unary_rpc_method_handler(border.unary)
        if not method.takes_stream:
            return grpc.unary_stream_rpc_method_handler(border.stream)
        return grpc.stream_stream_rpc_method_handler(border.stream)


class _Border:
    """One method, with bytes on both sides and no way out for an exception."""

    def __init__(
        self, whole: ErrorBorder, path: str, method: Method, on_end: _OnEnd
    ) -> None:
        self._whole = whole
        self._method = path
        # Any: the method's own messages; its descriptor has paired them.
        self._function: Callable[..., Any] = method.function
        self._deserialize: _Parse = method.request.FromString
        self._serialize: Callable[[Any], bytes] = method.response.SerializeToString
        self._on_end = on_end

    async def unary(self, raw: bytes, context: _Context) -> bytes:
        self._whole.calls += 1
        try:
            reply = self._serialize(await self._function(self._parse(raw), context))
        except asyncio.CancelledError:
            self._on_end(self._method, Code.CANCELLED)
            raise
        except Exception as error:
            await self._abort(error, context)
            raise  # abort() has raised already
        self._on_end(self._method, Code.OK)
        return reply

    async def stream(
        self, raw: bytes | AsyncIterator[bytes], context: _Context
    ) -> AsyncIterator[bytes]:
        self._whole.calls += 1
        try:
            request = self._parse(raw) if isinstance(raw, bytes) else self._each(raw)
            async with aclosing(self._function(request, context)) as replies:
                async for reply in replies:
                    yield self._serialize(reply)
        except asyncio.CancelledError:
            self._on_end(self._method, Code.CANCELLED)
            raise
        except Exception as error:  # noqa: BLE001 (the border: nothing passes)
            await self._abort(error, context)
        self._on_end(self._method, Code.OK)

    def _parse(self, raw: bytes) -> Any:
        try:
            return self._deserialize(raw)
        except DecodeError as error:
            raise BadRequest("the request is not a message of this method") from error

    async def _each(self, raws: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for raw in raws:
            yield self._parse(raw)

    async def _abort(self, error: Exception, context: _Context) -> None:
        if isinstance(error, grpc.aio.AbortError):
            raise error  # the method has told the caller itself
        status = answer_to(error, self._method)
        forget_frames(error)
        self._on_end(self._method, status.code)
        details = status.details
        trailing = () if details is None else ((DETAILS_KEY, details),)
        try:
            await context.abort(_CODES[status.code], status.text, trailing)
        except grpc.aio.InternalError:
            # The call ended first, as it does when its deadline is also what failed
            # inside. Nobody is there to be told, and grpc would log it as our error.
            raise asyncio.CancelledError from None
