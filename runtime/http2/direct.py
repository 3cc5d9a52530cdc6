"""One message in, one message out, without ASGI's messages between call and stream.

Owns: the short way of what is usual: a request that came whole and plain, an answer of
at most PART bytes. Must not: do anything else in a way of its own; that goes as it does
inside Envoy (runtime/asgi/unary.py). What ASGI takes of a hit is a third.
"""

import asyncio

from runtime.asgi.framing import PREFIX, framed, length_of
from runtime.asgi.metadata import CONTENT_TYPE, OK, Headers
from runtime.asgi.telling import hand, status_for
from runtime.asgi.unary import Unary, events_of
from runtime.asgi.vigil import Caller
from runtime.http2.stream import PART, CallerLeft, Stream
from runtime.status import Code

_HEAD: Headers = [CONTENT_TYPE]


class Direct(Unary):
    """Answers one method."""

    async def over(self, stream: Stream) -> None:
        """Answer one call; whatever happens, nothing is raised."""
        vigil, caller = self._vigil, Caller(stream.receive)
        task = vigil.begin(caller, stream.task)
        try:
            headers = dict(stream.request.headers)
            self._heeded(headers, caller)
            flag, body = 0, stream.take()
            if body is not None and self._is_usual(body):
                payload = body[PREFIX:]
            else:
                stream.give_back(body)
                flag, payload = await self._read(None, stream.receive)
            answer, encoding = await self._answered(headers, caller, flag, payload)
            if flag or len(answer) > PART:
                await hand(stream.send, *await events_of(answer, encoding))
            else:
                stream.answer(_HEAD, framed(answer), OK)
        except (asyncio.CancelledError, CallerLeft):
            await self._cancelled(caller, stream.send)
        except Exception as error:  # noqa: BLE001 (the border: nothing passes)
            await self._ended(status_for(error, self._path), stream.send)
        else:
            self._on_end(self._path, Code.OK)
        finally:
            del vigil.open[task]
            stream.abandon()

    def _is_usual(self, body: bytes) -> bool:
        """One frame, not compressed, and nothing behind it. Raises Ended."""
        if len(body) < PREFIX or body[0]:
            return False
        return len(body) == PREFIX + length_of(body, self._limit)
