"""Messages that keep their borders, with file descriptors where they belong.

Owns: one end of a socket pair (SOCK_SEQPACKET), and what waits until the other side has
read: its buffer takes two large messages, or some three hundred small ones. Must not:
know what a message means, or carry requests (runtime/link/stream.py): a message has
LARGEST bytes at most.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

LARGEST = 192 << 10
"""Bytes of a message; Linux' default buffer takes 208 KiB."""
MOST_FDS = 4
MOST_WAITING = 4096
"""Messages that wait for the other side; beyond, it counts as gone."""

Said = TypeVar("Said")
Heard = TypeVar("Heard")

_encoder = msgspec.msgpack.Encoder()


class Packets(Generic[Said, Heard]):
    """One end. `heard` gets each message with its descriptors, which are its own from
    then on; `lost` is called when the other side is gone."""

    def __init__(
        self,
        end: socket.socket,
        decoder: "msgspec.msgpack.Decoder[Heard]",
        heard: Callable[[Heard, Sequence[int]], None],
        lost: Callable[[], None],
    ) -> None:
        end.setblocking(False)
        self._end = end
        self._decoder = decoder
        self._heard = heard
        self._lost = lost
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end.fileno(), self.drain)

    def say(self, message: Said, fds: Sequence[int] = ()) -> bool:
        """False: the other side is gone, or has not listened for very long."""
        data = _encoder.encode(message)
        if not self._waiting:
            try:
                socket.send_fds(self._end, [data], fds)
                return True
            except BlockingIOError:
                self._loop.add_writer(self._end.fileno(), self._send_waiting)
            except OSError:
                return False
        if len(self._waiting) >= MOST_WAITING:
            return False
        self._waiting.append((data, [os.dup(fd) for fd in fds]))
        return True

    def close(self) -> None:
        """Hear nothing more; what waits is not said."""
        if self._end.fileno() >= 0:
            self._forget_waiting()
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

    def _send_waiting(self) -> None:
        while self._waiting:
            data, fds = self._waiting[0]
            try:
                socket.send_fds(self._end, [data], fds)
            except BlockingIOError:
                return
            except OSError:
                break  # it is gone: the reader will say so
            self._waiting.popleft()
            for fd in fds:
                os.close(fd)
        self._forget_waiting()

    def _forget_waiting(self) -> None:
        self._loop.remove_writer(self._end.fileno())
        for _, fds in self._waiting:
            for fd in fds:
                os.close(fd)
        self._waiting.clear()
