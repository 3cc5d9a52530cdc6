"""A porter's process as its engine has it: begun, watched, ended.

Owns: one life of it. Must not: know what it is asked, or begin the next.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

import structlog

from runtime.link.packets import Packets
from runtime.porter.messages import REPORTS, Order, Report, Stop

log = structlog.get_logger()

TICK_S = 1.0
HUNG_S = 15.0
"""Seconds without a word after which it is killed. A tick counts as no more than twice
TICK_S, so that a machine that slept does not find it hung."""

LEAVING_S = 5.0
"""For what is being written to the disk tier."""


class Process:
    """One life. `heard` gets its reports; `gone` is told when it has been reaped, so
    that nothing is written any more."""

    def __init__(
        self,
        heard: Callable[[Report], None],
        gone: Callable[["Process", int], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._gone = gone
        self._silent = 0.0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = _started(theirs.fileno())
            self._pidfd = _pidfd(self._process)
        except BaseException:
            ours.close()
            raise
        self._loop.add_reader(self._pidfd, self._reap)
        self._packets: Packets[Order, Report] = Packets(
            ours, REPORTS, lambda report, fds: self._hear(report, heard), lambda: None
        )
        self._watch = self._loop.create_task(self._watched())
        self.ended: asyncio.Future[int] = self._loop.create_future()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def say(self, order: Order, fds: Sequence[int] = ()) -> bool:
        """False: it does not listen."""
        return self._packets.say(order, fds)

    def kill(self) -> None:
        """End it at once; `gone` is told."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def leave(self) -> None:
        """Have it end by itself, or end it."""
        self.say(Stop())
        await asyncio.wait([self.ended], timeout=LEAVING_S)
        if not self.ended.done():
            log.error("the porter did not leave, it is killed", pid=self.pid)
            self.kill()
            await self.ended

    def _hear(self, report: Report, heard: Callable[[Report], None]) -> None:
        self._silent = 0.0
        heard(report)

    async def _watched(self) -> None:
        before = self._loop.time()
        while True:
            await asyncio.sleep(TICK_S)
            now = self._loop.time()
            self._silent += min(now - before, 2 * TICK_S)
            before = now
            if self._silent > HUNG_S:
                log.error("the porter hangs, it is killed", pid=self.pid)
                self.kill()
                return

    def _reap(self) -> None:
        self._watch.cancel()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._process.wait()
        try:
            self._packets.drain()  # its last words
        finally:
            self._packets.close()
            self.ended.set_result(code)
            self._gone(self, code)


def _pidfd(process: "subprocess.Popen[bytes]") -> int:
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise


def _started(fd: int) -> "subprocess.Popen[bytes]":
    """Where modules are found is what it is here, not the folder that we are run in."""
    found = os.pathsep.join(path or os.getcwd() for path in sys.path)
    command = [sys.executable, "-P", "-m", "runtime.porter", str(fd), str(os.getpid())]
    return subprocess.Popen(
        command,
        pass_fds=(fd,),
        process_group=0,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": found},
    )
