"""A child of the supervisor, and in the child the way back to it.

Owns: starting a process so that it cannot outlive us, ending it, and noticing its end.
Must not: know what it is for.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import structlog

from runtime.tree.control import Control, Message, Stop
from runtime.tree.lives import Lives

log = structlog.get_logger()

Role = Literal["engine", "front", "envoy"]
"""`envoy`: a front end that becomes Envoy."""


class Child:
    """A running process. `code`: how it ended. `silent`: seconds since it was heard, as
    the supervisor counts them; `killed_for`: why we ended it."""

    def __init__(
        self,
        role: Role,
        heard: Callable[["Child", Message, Sequence[int]], None],
        cores: Collection[int] | None = None,
    ) -> None:
        self.role = role
        self.silent = 0.0
        self.killed_for = ""
        self.up = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "runtime.tree", role, str(theirs.fileno())]
            # A group of its own: Ctrl-C is for the supervisor, which ends the others in
            # their order.
            self._process = subprocess.Popen(
                [*command, str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                process_group=0,
                stdin=subprocess.DEVNULL,
            )
        if cores:
            os.sched_setaffinity(self._process.pid, cores)
        self._control = Control(
            ours, lambda message, fds: heard(self, message, fds), lambda: None
        )
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    def __repr__(self) -> str:
        return f"<{self.role} {self.pid}>"

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """False once it has been reaped."""
        return not self.ended.done()

    def say(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Tell it. One that does not listen is found out by its silence."""
        self._control.say(message, fds)

    def kill(self, reason: str) -> None:
        """End it at once, stopped or hung as it may be."""
        if self.alive:
            self.killed_for = self.killed_for or reason
            self._process.kill()

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._process.wait()
        self._control.drain()  # its last words
        self._control.close()
        self.ended.set_result(code)


class Slot:
    """The place of one front end, whoever fills it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.child: Child | None = None
        self.requests = -1
        self.folder = ""
        """Its files, until it has ended; empty if it has none."""
        self.lives = Lives()


def folder_for(role: Role) -> contextlib.AbstractContextManager[str]:
    """For an Envoy's files, which it cannot remove when it is killed."""
    if role != "envoy":
        return contextlib.nullcontext("")
    return tempfile.TemporaryDirectory(prefix="hotset-", ignore_cleanup_errors=True)


async def leave(children: Sequence[Child], seconds: float) -> None:
    """Have them stop by themselves, and end those that do not."""
    for child in children:
        child.say(Stop())
    if not children:
        return
    _, late = await asyncio.wait([c.ended for c in children], timeout=seconds)
    for child in children:
        if child.alive:
            log.error("a process did not leave, it is killed", role=child.role)
            child.kill("the end")
    if late:
        await asyncio.wait(late)
