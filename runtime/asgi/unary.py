"""One message in, one message out: the path that every predict takes.

Owns: the order of such a call, in as few steps as it takes. Must not: know what a
method does. Streams are in runtime/asgi/streaming.py.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from runtime.asgi.ended import Ended
from runtime.asgi.framing import (
    PREFIX,
    deflated,
    framed,
    inflated,
    length_of,
    prefix,
    too_large,
)
from runtime.asgi.metadata import CONTENT_TYPE, OK, check_size, timeout_of
from runtime.asgi.telling import OnEnd, hand, refuse, status_for
from runtime.asgi.theirs import Theirs
from runtime.asgi.types import Message, Receive, Send
from runtime.asgi.vigil import Caller, Vigil
from runtime.methods import Method
from runtime.status import Code, Status

_START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [CONTENT_TYPE],
    "trailers": True,
}
_END: Message = {"type": "http.response.trailers", "headers": OK}
_PLAIN = b"identity"

LARGE = 1 << 20
"""Bytes of an answer from which it goes out behind its prefix instead of in a copy."""

FEW = 8
"""Open calls up to which answers wait for those of their turn. With more of them the
first had better be on its way while the last are made: then both cores have work, and
whoever sends is seldom asleep."""


class Unary:
    """An ASGI application that answers one method."""

    def __init__(
        self, path: str, method: Method, limit: int, vigil: Vigil, on_end: OnEnd
    ) -> None:
        self._path = path
        self._parse = method.request.FromString
        # Any: the method's own messages; its descriptor has paired them.
        self._function: Callable[[Any, Caller], Awaitable[Any]]
        self._function = method.function  # type: ignore[assignment]
        self._limit = limit
        self._vigil = vigil
        self._on_end = on_end

    def __call__(self, scope: Message, receive: Receive, send: Send) -> Awaitable[None]:
        """A plain function: a call that is alone asks for its body here and now, and
        has it under way while the task that reads it is made. Among others that would
        only wake whoever brings the bodies once more."""
        first = None if self._vigil.open else receive()
        return self._answer(scope, receive, send, first)

    async def _answer(
        self,
        scope: Message,
        receive: Receive,
        send: Send,
        first: Awaitable[Message] | None,
    ) -> None:
        """Answer one call; whatever happens, nothing is raised."""
        vigil, caller = self._vigil, Caller(receive)
        task = vigil.begin(caller)
        try:
            headers = dict(scope["headers"])
            self._heeded(headers, caller)
            flag, payload = await self._read(first, receive)
            answer, encoding = await self._answered(headers, caller, flag, payload)
            events = await events_of(answer, encoding)
            if 1 < len(vigil.open) <= FEW:
                # A lap of the loop, in which all who were answered in this turn make
                # their answers. So these go out one after the other, and whoever sends
                # them (in Envoy another thread) is woken once and not for each.
                await asyncio.sleep(0)
            await hand(send, *events)
        except asyncio.CancelledError:
            await self._cancelled(caller, send)
        except Exception as error:  # noqa: BLE001 (the border: nothing passes)
            await self._ended(status_for(error, self._path), send)
        else:
            self._on_end(self._path, Code.OK)
        finally:
            del vigil.open[task]

    def _heeded(self, headers: Mapping[bytes, bytes], caller: Caller) -> None:
        """What they say of the call. Raises Ended."""
        check_size(headers)
        if b"grpc-timeout" in headers:
            caller.give_up_after(timeout_of(headers[b"grpc-timeout"]))

    async def _answered(
        self, headers: Mapping[bytes, bytes], caller: Caller, flag: int, payload: bytes
    ) -> tuple[bytes, bytes]:
        """The answer to a message, and how it is to be compressed."""
        caller.watched = True
        encoding = _PLAIN
        if flag:
            encoding = headers.get(b"grpc-encoding", _PLAIN)
            payload = await inflated(flag, payload, encoding, self._limit)
        reply = await self._function(self._parse(payload), caller)
        return self._written(reply), encoding

    def _written(self, reply: Any) -> bytes:
        answer: bytes = reply.SerializeToString()
        if len(answer) > self._limit:
            raise too_large(len(answer), self._limit, "Sent")
        return answer

    async def _read(
        self, first: Awaitable[Message] | None, receive: Receive
    ) -> tuple[int, bytes]:
        """The flag and the bytes of the one message. `first`: what was asked for."""
        event = await _event(receive() if first is None else first)
        body: bytes = event["body"]
        if len(body) >= PREFIX:
            end = PREFIX + length_of(body, self._limit)
            if len(body) >= end:
                return body[0], body[PREFIX:end]
        return await self._read_on(body, event, receive)

    async def _read_on(
        self, body: bytes, event: Message, receive: Receive
    ) -> tuple[int, bytes]:
        """The rest of a message that comes in parts; its bytes are copied once."""
        while len(body) < PREFIX:
            event = await _more(event, receive)
            body += event["body"]
        flag, length = body[0], length_of(body, self._limit)
        parts: list[bytes | memoryview] = [memoryview(body)[PREFIX:]]
        missing = length - len(parts[0])
        while missing > 0:
            event = await _more(event, receive)
            parts.append(event["body"])
            missing -= len(parts[-1])
        payload = b"".join(parts)
        return flag, payload if missing == 0 else payload[:length]

    async def _cancelled(self, caller: Caller, send: Send) -> None:
        if caller.fate is None:
            self._on_end(self._path, Code.CANCELLED)
        else:
            await self._ended(caller.fate, send)

    async def _ended(self, status: Status, send: Send) -> None:
        self._on_end(self._path, status.code)
        await refuse(status, send)


async def _more(event: Message, receive: Receive) -> Message:
    """The part after `event`."""
    if not event.get("more_body"):
        text = "the request ended before its message did"
        raise Ended(Status(Code.INTERNAL, 400, text))
    return await _event(receive())


async def _event(coming: Awaitable[Message]) -> Message:
    """A part that has been asked for. The watch may cancel us, but not the server's own
    future: pyvoy gives it its result all the same, when the request ends."""
    event = await Theirs(asyncio.ensure_future(coming))
    if event["type"] != "http.request":
        raise asyncio.CancelledError
    return event


async def events_of(answer: bytes, encoding: bytes) -> tuple[Message, ...]:
    """The whole answer, compressed as the request was."""
    if encoding != _PLAIN:
        return await _compressed(answer, encoding)
    if len(answer) >= LARGE:
        head = {"type": "http.response.body", "body": prefix(answer)}
        rest = {"type": "http.response.body", "body": answer}
        return _START, {**head, "more_body": True}, rest, _END
    return _START, {"type": "http.response.body", "body": framed(answer)}, _END


async def _compressed(answer: bytes, encoding: bytes) -> tuple[Message, ...]:
    """The whole answer, compressed as the request was."""
    start = {**_START, "headers": [CONTENT_TYPE, (b"grpc-encoding", encoding)]}
    body = await deflated(answer, encoding)
    return start, {"type": "http.response.body", "body": body}, _END
