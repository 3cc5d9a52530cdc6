"""A server as the tree of its processes: CPU time, memory, end.

Owns: the processes that came from one command, by pid. Must not: end anything else.
"""

import contextlib
import os
import subprocess

import psutil

STOP_S = 20.0
"""Some of the peers take several seconds over a SIGTERM, some never listen."""


class Tree:
    """The command's process, its descendants, and those they left in its session."""

    def __init__(self, root: "subprocess.Popen[bytes]") -> None:
        self._root = root
        self._lost = 0.0
        self._last: dict[int, float] = {}

    @property
    def ended(self) -> bool:
        """True once the command itself is gone."""
        return self._root.poll() is not None

    def members(self) -> list[psutil.Process]:
        """All processes of it that live."""
        session = self._root.pid  # it was started as the leader of a session
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            # Gone since it was listed, or not ours to ask: then it is none of ours.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(process.pid) == session:
                    found[process.pid] = process
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(session).children(recursive=True):
                found[process.pid] = process
        return list(found.values())

    def cpu_seconds(self) -> float:
        """CPU time of all of them so far, user and system, the dead included."""
        now: dict[int, float] = {}
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                now[process.pid] = times.user + times.system
        # What a process had used when it was last seen is not lost with it.
        self._lost += sum(v for pid, v in self._last.items() if pid not in now)
        self._last = now
        return self._lost + sum(now.values())

    def pss(self) -> int:
        """Bytes of memory, what is shared counted once."""
        total = 0
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().pss
        return total

    def stop(self) -> None:
        """SIGTERM to the command; SIGKILL to what is left of the tree after a while."""
        members = self.members()
        if not self.ended:
            self._root.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._root.wait(STOP_S)
        for process in {*members, *self.members()}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._root.wait()
