"""Messages that keep their borders, with file descriptors where they belong.

Owns: one end of a socket pair (SOCK_SEQPACKET). Must not: know what a message means, or
carry requests (runtime/link/stream.py): a message has LARGEST bytes at most.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

LARGEST = 192 << 10
"""Bytes of a message; Linux' default buffer takes 208 KiB."""
MOST_FDS = 4

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()


class Packets(Generic[M]):
    """One end. `heard` gets each message with its descriptors, which are its own from
    then on; `lost` is called when the other side is gone."""

    def __init__(
        self,
        end: socket.socket,
        decoder: "msgspec.msgpack.Decoder[M]",
        heard: Callable[[M, Sequence[int]], None],
        lost: Callable[[], None],
    ) -> None:
        end.setblocking(False)
        self._end = end
        self._decoder = decoder
        self._heard = heard
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end.fileno(), self.drain)

    def say(self, message: M, fds: Sequence[int] = ()) -> bool:
        """False: the other side is gone, or does not listen and has not for long."""
        try:
            socket.send_fds(self._end, [_encoder.encode(message)], fds)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Hear nothing more."""
        if self._end.fileno() >= 0:
            self._loop.remove_reader(self._end.fileno())
            self._end.close()

    def drain(self) -> None:
        """Hear all that has arrived."""
        while self._end.fileno() >= 0:
            try:
                data, fds, _, _ = socket.recv_fds(
                    self._end, LARGEST + 4096, MOST_FDS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self.close()
                self._lost()
                return
            try:
                message = self._decoder.decode(data)
            except msgspec.DecodeError:
                for fd in fds:
                    os.close(fd)
                raise
            self._heard(message, fds)
