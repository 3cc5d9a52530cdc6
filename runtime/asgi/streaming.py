"""Calls with a stream on a side: health's Watch, reflection, streamed predicts.

Owns: the order of such a call: messages in as they come, messages out as they are
made, each waiting until the one before has gone. Must not: know what a method does.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from runtime.asgi.ended import Ended
from runtime.asgi.framing import PREFIX, framed, inflated, length_of, too_large
from runtime.asgi.metadata import (
    CONTENT_TYPE,
    OK,
    Headers,
    check_size,
    timeout_of,
    told,
)
from runtime.asgi.telling import OnEnd, hand, refuse, status_for
from runtime.asgi.types import Message, Receive, Send
from runtime.asgi.vigil import Caller, Vigil
from runtime.methods import Method
from runtime.status import Code, Status


class Streaming:
    """An ASGI application that answers one method."""

    def __init__(
        self, path: str, method: Method, limit: int, vigil: Vigil, on_end: OnEnd
    ) -> None:
        self._path = path
        self._parse = method.request.FromString
        # Any: the method's own messages; its descriptor has paired them.
        self._function: Callable[[Any, Caller], AsyncGenerator[Any, None]]
        self._function = method.function  # type: ignore[assignment]
        self._takes_stream = method.takes_stream
        self._limit = limit
        self._vigil = vigil
        self._on_end = on_end

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one call; whatever happens, nothing is raised."""
        vigil, caller = self._vigil, Caller(receive)
        caller.watched, caller.whole = True, False
        task, out = vigil.begin(caller), _Out(send, self._limit)
        status: Status | None = None
        try:
            headers = dict(scope["headers"])
            check_size(headers)
            if b"grpc-timeout" in headers:
                caller.give_up_after(timeout_of(headers[b"grpc-timeout"]))
            encoding = headers.get(b"grpc-encoding", b"identity")
            await self._run(caller, encoding, out)
            await out.end(OK)
        except asyncio.CancelledError:
            status = caller.fate or _LEFT
        except Exception as error:  # noqa: BLE001 (the border: nothing passes)
            status = status_for(error, self._path)
        finally:
            del vigil.open[task]
        self._on_end(self._path, Code.OK if status is None else status.code)
        if status is not None and status is not _LEFT:
            await out.fail(status)

    async def _run(self, caller: Caller, encoding: bytes, out: "_Out") -> None:
        requests = self._requests(_In(caller, self._limit), encoding)
        request: Any = requests if self._takes_stream else await anext(requests)
        async with aclosing(self._function(request, caller)) as replies:
            async for reply in replies:
                await out.send(reply.SerializeToString())

    async def _requests(self, body: "_In", encoding: bytes) -> AsyncIterator[Any]:
        while (frame := await body.frame()) is not None:
            flag, payload = frame
            if flag:
                payload = await inflated(flag, payload, encoding, self._limit)
            yield self._parse(payload)
        if not self._takes_stream:
            text = "the request ended before its message did"
            raise Ended(Status(Code.INTERNAL, 400, text))


_LEFT = Status(Code.CANCELLED, 499, "the caller has left")


class _In:
    """The request's body, frame by frame."""

    def __init__(self, caller: Caller, limit: int) -> None:
        self._caller = caller
        self._limit = limit
        self._body = bytearray()

    async def frame(self) -> tuple[int, bytes] | None:
        """The next frame's flag and bytes; None when there are no more."""
        body = self._body
        while True:
            if len(body) >= PREFIX:
                end = PREFIX + length_of(body, self._limit)
                if len(body) >= end:
                    flag, payload = body[0], bytes(memoryview(body)[PREFIX:end])
                    del body[:end]
                    return flag, payload
            if self._caller.whole:
                if body:
                    text = "the request ended within a message"
                    raise Ended(Status(Code.INTERNAL, 400, text))
                return None
            await self._more()

    async def _more(self) -> None:
        caller = self._caller
        if caller.asked is None:
            caller.asked = asyncio.ensure_future(caller.receive())
        # The watch may cancel us, but not the server's own future.
        event = await asyncio.shield(caller.asked)
        caller.asked = None
        if event["type"] != "http.request":
            raise asyncio.CancelledError
        self._body += event["body"]
        caller.whole = not event.get("more_body")


class _Out:
    """The answer: headers with the first message; without one, with the status."""

    def __init__(self, send: Send, limit: int) -> None:
        self._send = send
        self._limit = limit
        self._begun = False

    async def send(self, message: bytes) -> None:
        """One message; returns when there is room for the next."""
        if len(message) > self._limit:
            raise too_large(len(message), self._limit, "Sent")
        await self._begin()
        body: Message = {
            "type": "http.response.body",
            "body": framed(message),
            "more_body": True,
        }
        await hand(self._send, body)

    async def end(self, trailers: Headers) -> None:
        """No more messages; these are the trailers."""
        await self._begin()
        await hand(
            self._send,
            {"type": "http.response.body", "body": b""},
            {"type": "http.response.trailers", "headers": trailers},
        )

    async def fail(self, status: Status) -> None:
        """End with a status other than OK; whoever has left is not told."""
        if not self._begun:
            await refuse(status, self._send)
            return
        with contextlib.suppress(asyncio.CancelledError):
            await self.end(told(status))

    async def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        start: Message = {
            "type": "http.response.start",
            "status": 200,
            "headers": [CONTENT_TYPE],
            "trailers": True,
        }
        await hand(self._send, start)
