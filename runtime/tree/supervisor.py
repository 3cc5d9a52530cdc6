"""The supervisor: one engine and its front ends, started, introduced, watched, replaced
and ended in order.

    front ends    are told to stop first: they refuse, drain, and leave
    the engine    then gives its memory back and leaves

Owns: the processes, the ports, the shared memory, and who was resident. Must not:
import torch or grpc, see a request, or wait for a child that does not answer.
"""

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import Coroutine, Mapping, Sequence

import structlog

from loader.estate_files import estate_files
from runtime.config import Settings
from runtime.link.memory import anonymous
from runtime.tree.child import Child, Role, Slot, folder_for, leave
from runtime.tree.control import (
    Begin,
    Meet,
    Message,
    Residents,
    Unfit,
    Unlinked,
    Up,
)
from runtime.tree.cores import Cores
from runtime.tree.lives import Lives, reason_of
from runtime.tree.ports import Ports

log = structlog.get_logger()

TICK_S = 0.25
"""How often it looks after its children. A tick counts as no more than twice that, so
that a machine that slept does not find all of them hung."""

LEAVING_S = 5.0
"""Beyond the grace, until a child that was told to stop is killed."""

IN_FLIGHT = 4
"""Largest messages that fit into shared memory at a time, each way and front end; more
go through the socket."""

UNLINKED_S = 2.0
"""An engine that lives on so long without its link to a front end is replaced."""


class CannotServe(Exception):
    """No process could do what the settings ask; the message says why."""


class Supervisor:
    """One for a server. `values`: the settings as they were read."""

    def __init__(self, settings: Settings, values: Mapping[str, object]) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._cores = Cores.of(settings.pin, settings.frontends)
        self._ports = Ports(settings)
        self._values = {**values, **self._ports.settings}
        self._front: Role = "envoy" if settings.frontend == "envoy" else "front"
        self._slots = [Slot(number) for number in range(settings.frontends)]
        self._engine: Child | None = None
        self._next: Child | None = None
        self._lives = Lives()
        tiered = settings.host_cache
        self._estate = estate_files(tiered) if tiered else ()
        self._residents: list[tuple[str, str]] | None = None
        self._served = False
        self._unfit = ""
        self._about: dict[str, str | int] = {}
        self._stopping = False
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Until told to stop, or until nothing can be served; the exit code."""
        told = self._loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._told, told)
        self._spawn(self._live())
        for slot in self._slots:
            self._spawn(self._keep(slot))
        watch = self._loop.create_task(self._watch())
        try:
            await asyncio.wait({told, self._over}, return_when=asyncio.FIRST_COMPLETED)
            await self._stop()
        finally:
            watch.cancel()
            for child in self._children():
                child.kill("the end")
            for task in self._tasks:
                task.cancel()
            self._ports.close()
        if self._unfit:
            raise CannotServe(self._unfit)
        return 0

    def _told(self, told: "asyncio.Future[None]") -> None:
        if not told.done():
            told.set_result(None)
            return
        # A second time: now, and as the system would have it.
        for child in self._children():
            child.kill("the end")
        for slot in self._slots:
            if slot.folder:
                shutil.rmtree(slot.folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.critical("the supervisor failed", exc_info=task.exception())
            self._give_up("a bug of ours: see the log")

    def _children(self) -> list[Child]:
        fronts = [slot.child for slot in self._slots]
        found = [self._engine, self._next, *fronts]
        return [child for child in found if child is not None and child.alive]

    def _give_up(self, reason: str) -> None:
        self._unfit = self._unfit or reason
        if not self._over.done():
            self._over.set_result(None)

    # -- the engine -------------------------------------------------------------------

    async def _live(self) -> None:
        """One engine after the other."""
        while not self._stopping:
            life = self._lives.begin(self._loop.time())
            engine = self._engine = self._next or self._child("engine")
            self._next = None
            residents = self._residents if self._lives.trusting else None
            # The next one runs the same layers in the same library.
            kernels = self._about.get("onednn_from")
            begin = Begin(
                self._values,
                residents=residents,
                onednn_from=None if kernels is None else int(kernels),
                restarts=dict(self._lives.ends),
            )
            engine.say(begin, self._estate)
            code = await engine.ended
            self._engine = None
            if self._stopping:
                return
            reason = reason_of(code, engine.killed_for)
            if not self._served:
                self._give_up(f"the engine {reason} before it served (code {code})")
                return
            wait = self._lives.end(self._loop.time(), reason)
            log.error(
                "the engine is replaced", reason=reason, code=code, life=life, wait=wait
            )
            await asyncio.sleep(wait)

    def _child(self, role: Role, number: int = 0) -> Child:
        return Child(role, self._heard, self._cores.of_child(role, number))

    # -- front ends -------------------------------------------------------------------

    async def _keep(self, slot: "Slot") -> None:
        """One front end after the other, in one slot."""
        while not self._stopping:
            slot.lives.begin(self._loop.time())
            front, code = await self._front_end(slot)
            if self._stopping:
                return
            reason = reason_of(code, front.killed_for)
            if not self._served:
                self._give_up(f"a front end {reason} before it served (code {code})")
                return
            wait = slot.lives.end(self._loop.time(), reason)
            log.error("a front end is replaced", reason=reason, code=code, wait=wait)
            await asyncio.sleep(wait)

    async def _front_end(self, slot: "Slot") -> tuple[Child, int]:
        """One life, and how it ended."""
        with folder_for(self._front) as folder:
            slot.folder = folder
            slot.requests = self._memory(f"requests-{slot.number}")
            front = slot.child = self._child(self._front, slot.number)
            begin = Begin(self._values, folder)
            front.say(begin, [slot.requests, *self._ports.handed])
            code = await front.ended
            os.close(slot.requests)
            return front, code

    def _memory(self, name: str) -> int:
        return anonymous(f"hotset-{name}", IN_FLIGHT * self._settings.max_message)

    def _introduce(self, slot: "Slot") -> None:
        """To each other: the engine there is, and a front end."""
        engine, front = self._engine, slot.child
        if engine is None or front is None or not (engine.up and front.up):
            return
        if not front.alive:  # its requests' memory is gone, and it has no successor yet
            return
        one, other = socket.socketpair()
        answers = self._memory(f"answers-{slot.number}")
        with one, other:
            meet = Meet(self._lives.number)
            engine.say(meet, [one.fileno(), answers, slot.requests])
            front.say(meet, [other.fileno(), answers])
        os.close(answers)

    # -- what they say ----------------------------------------------------------------

    def _heard(self, child: Child, message: Message, fds: Sequence[int]) -> None:
        child.silent = 0.0
        if isinstance(message, Unfit):
            self._cannot(child, message.reason)
        elif isinstance(message, Residents):
            self._residents = message.models
            log.debug("who is resident", models=len(message.models))
        elif isinstance(message, Unlinked):
            self._spawn(self._unlinked(message.life))
        elif isinstance(message, Up):
            child.up = True
            self._about.update(message.about)
            for slot in self._slots:
                if child in (self._engine, slot.child):
                    self._introduce(slot)
            self._tell()

    def _cannot(self, child: Child, reason: str) -> None:
        """At first nobody can. Later a front end's successor may, the next time."""
        if child is self._engine or not self._served:
            self._give_up(reason)
        else:
            log.error("a process could not begin", role=child.role, reason=reason)

    async def _unlinked(self, life: int) -> None:
        """Most often its engine is dead, and this is how its front end knows. Front
        ends that leave let go of theirs too; it has LEAVING_S to follow them."""
        await asyncio.sleep(UNLINKED_S)
        if self._stopping:
            return
        if self._engine is not None and self._lives.number == life:
            self._engine.kill("unlinked")

    def _tell(self) -> None:
        """Say once that all is up; and have the next engine ready from then on."""
        up = self._engine is not None and self._engine.up
        if not up or not all(slot.child and slot.child.up for slot in self._slots):
            return
        if self._next is None:
            self._next = self._child("engine")
        if self._served:
            return
        self._served = True
        about = {**self._ports.addresses, **self._about}
        log.info("serving", frontends=len(self._slots), **about)

    # -- watching and ending ----------------------------------------------------------

    async def _watch(self) -> None:
        """A process whose loop has not turned for too long is hung, or stopped."""
        before = self._loop.time()
        while True:
            await asyncio.sleep(TICK_S)
            now = self._loop.time()
            passed, before = min(now - before, 2 * TICK_S), now
            for child in self._children():
                child.silent += passed
                if child.up and child.silent > self._settings.predict_timeout:
                    child.kill("hung")

    async def _stop(self) -> None:
        self._stopping = True
        fronts = [s.child for s in self._slots if s.child is not None and s.child.alive]
        await leave(fronts, self._settings.grace + LEAVING_S)
        engine = self._engine
        await leave([engine] if engine is not None else [], LEAVING_S)
