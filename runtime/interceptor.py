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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from runtime.errors import BadRequest
from runtime.failures import forget_frames
from runtime.status import DETAILS_KEY, Code, answer_to

# Any: grpc's own signatures are generic over messages that nobody here looks into.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Parse = Callable[[bytes], Any]
_OnEnd = Callable[[str, Code], None]

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ErrorBorder(grpc.aio.ServerInterceptor):
    """Wraps every method of every service once; calls then find it in a dict.

    `on_end` is told how each call ended: its method's path and code.
    """

    def __init__(self, on_end: _OnEnd = lambda method, code: None) -> None:
        self._wrapped: dict[str, _Handler] = {}
        self._on_end = on_end
        self.calls = 0
        """Calls that have arrived, of any kind."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        self.calls += 1
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            bare = await continuation(handler_call_details)
            if bare is None:
                return None  # unknown: grpc answers UNIMPLEMENTED, nothing is kept
            wrapped = self._wrapped[method] = self._wrap(method, bare)
        return wrapped

    def _wrap(self, method: str, bare: Any) -> _Handler:
        border = _Border(method, bare, self._on_end)
        if bare.unary_unary:
            return grpc.unary_unary_rpc_method_handler(border.unary)
        if bare.unary_stream:
            return grpc.unary_stream_rpc_method_handler(border.stream)
        assert bare.stream_stream, f"{method} has a shape nobody serves. This is a bug."
        return grpc.stream_stream_rpc_method_handler(border.stream)


class _Border:
    """One method, with bytes on both sides and no way out for an exception."""

    def __init__(self, method: str, bare: Any, on_end: _OnEnd) -> None:
        self._method = method
        self._function = bare.unary_unary or bare.unary_stream or bare.stream_stream
        self._deserialize: _Parse = bare.request_deserializer
        self._serialize: Callable[[Any], bytes] = bare.response_serializer
        self._on_end = on_end

    async def unary(self, raw: bytes, context: _Context) -> bytes:
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
