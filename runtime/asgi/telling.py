"""How a call ends when it does not end well.

Owns: the one border between what a call raises and what its caller is told, as
runtime/border.py is for grpc.aio. Must not: decide codes or texts
(runtime/status.py), or raise.
"""

import asyncio
from collections.abc import Callable

from google.protobuf.message import DecodeError

from runtime.asgi.ended import Ended
from runtime.asgi.metadata import ACCEPTED, CONTENT_TYPE, Headers, told
from runtime.asgi.types import Message, Send
from runtime.errors import BadRequest
from runtime.failures import forget_frames
from runtime.status import Code, Status, answer_to

OnEnd = Callable[[str, Code], None]


def status_for(error: Exception, path: str) -> Status:
    """What to tell the caller of `path`; an error of ours goes to the log as well."""
    if isinstance(error, Ended):
        return error.status
    if isinstance(error, DecodeError):
        error = BadRequest("the request is not a message of this method")
    status = answer_to(error, path)
    forget_frames(error)
    return status


async def hand(send: Send, *events: Message) -> None:
    """Send what is to be sent. Whoever has left ends the call as a cancelled one."""
    try:
        for event in events:
            await send(event)
    except OSError:
        raise asyncio.CancelledError from None


async def refuse(status: Status, send: Send) -> None:
    """End a call that has answered nothing yet: its headers are its trailers."""
    headers: Headers = [CONTENT_TYPE, *told(status)]
    if status.code is Code.UNIMPLEMENTED:
        headers.append(ACCEPTED)
    try:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
    except OSError:  # the caller has left
        return
