"""The loader and its tiers, as the settings say.

Owns: making them and taking them apart in order. Must not: hold logic of its own.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from eviction.costs import Costs
from eviction.ledger import Ledger
from loader.ahead import Ahead
from loader.carrier import Carrier, carrier_for
from loader.errors import DeviceFull
from loader.estate import Estate
from loader.fill import THREADS, Filler
from loader.graphs import GraphShelf
from loader.host import HostTier
from loader.load import Loader
from loader.memory import DeviceMemory, memory_on
from loader.onednn import OneDnn
from loader.pinned import pool_for
from loader.placing import Placings
from loader.pool import Pool
from loader.room import Below
from loader.shared import SharedMemory, can_share
from loader.spool import Spool
from loader.store import Store
from loader.threads import stand_back
from loader.turns import Crew, Turns
from runtime.config import Settings
from runtime.porter.fit import begin, unfit
from runtime.porter.porter import Porter

log = structlog.get_logger()

TURN_S = 0.0005
"""How long a loading thread may keep the event loop from Python (`_taking_turns`)."""


class Unservable(Exception):
    """The settings ask for something this machine does not have; says what to do."""


@dataclass(frozen=True, slots=True)
class Bringing:
    """The loader, the order of its chunks, and the memory for what may come next."""

    loader: Loader
    turns: Turns
    ahead: Ahead | None


@contextlib.asynccontextmanager
async def loading(
    settings: Settings,
    store: Store,
    device: torch.device,
    ledger: Ledger,
    costs: Costs,
    estate: Estate | None = None,
    onednn: OneDnn | None = None,
) -> AsyncIterator[Bringing]:
    """A loader whose arena has what the ledger has, and whose graphs have their large
    layers in oneDNN, if it is given. Raises Unservable."""
    turns = Turns()
    count = max(settings.concurrent_loads, THREADS)
    threads = ThreadPoolExecutor(count, "loader", stand_back)
    crew = Crew(threads, turns)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_taking_turns())
        apart = _apart(settings, store, device)
        try:
            pool = pool_for(device, count)
            stack.callback(pool.close)
            host, ahead = await _copies(settings, device, threads, estate, apart, stack)
        except DeviceFull as error:
            raise Unservable(
                "the host has not the memory that --host-cache, --prefetch and "
                "--concurrent-loads ask for, or the container may not lock it "
                "(ulimit -l); ask for less"
            ) from error
        spool = None
        if settings.disk_cache:
            spool = Spool(Path(settings.disk_cache), settings.disk_cache_size)
            stack.push_async_callback(asyncio.to_thread, spool.close)
        stack.callback(threads.shutdown)
        shelf = GraphShelf(store, device, threads, settings.max_graphs, spool, onednn)
        stack.push_async_callback(shelf.aclose)
        below, carrier = await stack.enter_async_context(
            _hands(settings, store, device, crew, pool, spool, apart)
        )
        if host is not None:
            host.carrier = carrier
        loader = Loader(
            store,
            shelf,
            apart or memory_on(device),
            crew,
            settings.load_timeout,
            capacity=lambda: ledger.capacity,
            host=host,
            spool=spool,
            ahead=ahead,
            below=below,
            carrier=carrier,
            told=costs.told,
        )
        stack.callback(loader.slabs.close)
        yield Bringing(loader, turns, ahead)


@contextlib.asynccontextmanager
async def _hands(
    settings: Settings,
    store: Store,
    device: torch.device,
    crew: Crew,
    pool: Pool,
    spool: Spool | None,
    apart: SharedMemory | None,
) -> AsyncIterator[tuple[Below, Carrier]]:
    """Who brings bytes from below, and who copies them from the host tier."""
    placings = Placings()
    filler = Filler(store, placings, crew, pool, spool)
    if apart is None:
        yield filler, carrier_for(device, crew)
        return
    porter = Porter(filler, placings, apart, crew, begin(settings, store), spool)
    async with porter.living(settings.loader == "process"):
        yield porter, porter


async def _copies(
    settings: Settings,
    device: torch.device,
    threads: Executor,
    estate: Estate | None,
    memory: DeviceMemory | None,
    stack: contextlib.AsyncExitStack,
) -> tuple[HostTier | None, Ahead | None]:
    """The tiers that keep verified bytes in host memory. Raises DeviceFull."""
    host, ahead = None, None
    if settings.host_cache:
        host = HostTier(
            settings.host_cache, device, threads, estate, None if estate else memory
        )
        stack.callback(host.close)
        await asyncio.to_thread(host.reserve)
    if settings.prefetch:
        ahead = Ahead(settings.prefetch, device, host, settings.load_timeout, memory)
        stack.callback(ahead.close)
        await asyncio.to_thread(ahead.reserve)
    return host, ahead


def _apart(
    settings: Settings, store: Store, device: torch.device
) -> SharedMemory | None:
    """Memory that a porter may write to, if there may be one."""
    reason = unfit(settings, store, device)
    if not reason and not can_share():
        reason = "this machine has no files in memory that give pages back"
    if reason and settings.loader == "process":
        log.warning("loads stay in threads", reason=reason)
    return None if reason else SharedMemory()


@contextlib.contextmanager
def _taking_turns() -> Iterator[None]:
    """A shorter turn at the interpreter while there are loading threads.

    Whoever wants Python while another thread has it asks for it after the switch
    interval, 5 ms by default. A loading thread needs it for microseconds between two
    system calls, but the kernel may put it aside just then, the more so as it stands
    back (loader/threads.py); a resident model's p90 among loads was those 5 ms, and is
    under 1 ms like this (python -m bench.storm).
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, TURN_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
