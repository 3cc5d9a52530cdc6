"""Waits: the same policies when loads take time and requests queue behind them.

Owns: the waiting times. Must not: be finer than it says. What is modelled, and no more:

- a request for a resident model starts at once; its run pins the model for `run_s`;
- a request for an absent one queues a load; those that come meanwhile wait for it too
  (delayed hits); a request whose model is loading waits for the rest of the load;
- `slots` loads run at a time, the others queue in the order of their first request;
- a load needs its bytes free before it starts: the plan picks victims among residents
  nobody uses, those that have not stayed as long as their load took last, and the head
  of the queue waits when they are not enough;
- behind the VRAM lies a host tier of `near_bytes`, LRU by bytes: who falls out of VRAM
  falls into it, and comes back in `near_s` instead of `reload_s`.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eviction.candidates import Candidates
from eviction.plan import plan
from eviction.policy import Policy
from eviction.simulate.trace import Trace

PROGRESS_EVERY = 4096


@dataclass(frozen=True, slots=True)
class Machine:
    """What the loads run on. `near_s` empty: no host tier, everything at `reload_s`."""

    budget: int
    slots: int = 4
    run_s: float = 0.05
    near_bytes: int = 0
    near_s: Sequence[float] = ()
    speed: float = 1.0  # the trace's clock runs this much faster


@dataclass(frozen=True, slots=True)
class Waits:
    """Every request's wait in seconds, in no order; 0 for a hit; refused ones apart."""

    seconds: Sequence[float]
    loads: int
    refused: int  # larger than the whole budget
    loading_s: float = 0.0  # all loads together, each counted once
    _sorted: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Over all requests, hits included."""
        return sum(self.seconds) / len(self.seconds) if self.seconds else 0.0

    def quantile(self, q: float) -> float:
        """The wait that a share `q` of the requests does not exceed."""
        if not self._sorted:
            self._sorted.extend(sorted(self.seconds))
        last = len(self._sorted) - 1
        return self._sorted[min(last, int(q * len(self._sorted)))] if last >= 0 else 0.0


class _Run:
    """One simulation in progress; `_events` holds loads and runs that will end."""

    def __init__(self, trace: Trace, policy: Policy, machine: Machine) -> None:
        self.trace, self.policy, self.machine = trace, policy, machine
        self.free = machine.budget
        self.resident: dict[int, int] = {}  # model -> runs that pin it
        self.came: dict[int, tuple[float, float]] = {}  # when its load ended, and took
        self.waiting: dict[int, list[float]] = {}  # model that is to come -> arrivals
        self.queue: deque[int] = deque()
        self.loading = 0
        self.near: OrderedDict[int, int] = OrderedDict()  # oldest first -> bytes
        self.near_free = machine.near_bytes
        self.events: list[tuple[float, int, int, float]] = []
        self.serial = 0
        self.waits: list[float] = []
        self.loads = self.refused = 0
        self.loading_s = 0.0

    def at(self, when: float, model: int, took: float) -> None:
        """A load (`took` > 0) or a run (`took` < 0) ends at `when`."""
        self.serial += 1
        heapq.heappush(self.events, (when, self.serial, model, took))

    def arrive(self, model: int, now: float) -> None:
        """One request."""
        resident = model in self.resident
        self.policy.on_request(self.trace.names[model], now, resident)
        if resident:
            self.waits.append(0.0)
            self.use(model, now)
        elif self.trace.nbytes[model] > self.machine.budget:
            self.refused += 1
        elif model in self.waiting:
            self.waiting[model].append(now)
        else:
            self.waiting[model] = [now]
            self.queue.append(model)
            self.start_loads(now)

    def use(self, model: int, now: float) -> None:
        """A run pins its model until it ends."""
        self.resident[model] += 1
        self.at(now + self.machine.run_s, model, -1.0)

    def end(self, when: float, model: int, took: float) -> None:
        """A run or a load is over; either may let a queued load begin."""
        if took < 0.0:
            self.resident[model] -= 1
        else:
            self.loading -= 1
            self.loads += 1
            self.loading_s += took
            self.resident[model] = 0
            self.came[model] = (when, took)
            name = self.trace.names[model]
            self.policy.on_load(name, self.trace.nbytes[model], took, when)
            for arrived in self.waiting.pop(model):
                self.waits.append(when - arrived)
                self.use(model, when)
        if self.queue:
            self.start_loads(when)

    def reload_s(self, model: int) -> float:
        """From the tier it is in, or would fall to."""
        if self.machine.near_s and self.trace.nbytes[model] <= self.machine.near_bytes:
            return self.machine.near_s[model]
        return self.trace.reload_s[model]

    def start_loads(self, now: float) -> None:
        """As many of the queue as there are slots and room for, in order."""
        while self.queue and self.loading < self.machine.slots:
            model = self.queue[0]
            nbytes = self.trace.nbytes[model]
            near = model in self.near
            if near:  # it is wanted: whoever falls out of VRAM must not push it out
                self.near_free += self.near.pop(model)
            need = nbytes - self.free
            if need > 0 and not self.make_room(need, now):
                if near:
                    self.fall(model)
                return  # the first run to end asks again
            self.queue.popleft()
            self.free -= nbytes
            self.loading += 1
            took = self.machine.near_s[model] if near else self.trace.reload_s[model]
            self.at(now + took, model, took)

    def make_room(self, need: int, now: float) -> bool:
        """Evict among those nobody uses, or nobody."""
        trace = self.trace
        idle = [m for m, runs in self.resident.items() if not runs]
        made = plan(
            self.policy,
            Candidates(
                [trace.names[m] for m in idle],
                [trace.nbytes[m] for m in idle],
                [self.reload_s(m) for m in idle],
                since=[self.came[m][0] for m in idle],
                load_s=[self.came[m][1] for m in idle],
            ),
            need,
            now,
        )
        if made.short:
            return False
        index = {trace.names[m]: m for m in idle}
        for victim in made.victims:
            m = index[victim]
            del self.resident[m]
            self.policy.on_evict(victim, now)
            self.fall(m)
        self.free += made.freed
        return True

    def fall(self, model: int) -> None:
        """Into the host tier, whose oldest make room."""
        nbytes = self.trace.nbytes[model]
        if not self.machine.near_s or nbytes > self.machine.near_bytes:
            return
        while nbytes > self.near_free:
            self.near_free += self.near.popitem(last=False)[1]
        self.near[model] = nbytes
        self.near_free -= nbytes


def simulate_waits(
    trace: Trace,
    policy: Policy,
    machine: Machine,
    progress: Callable[[int], None] | None = None,
) -> Waits:
    """Arrivals in the trace's order and time; ends of loads and runs in between."""
    run = _Run(trace, policy, machine)
    for i, (time, model) in enumerate(zip(trace.times, trace.ids, strict=True)):
        now = time / machine.speed
        while run.events and run.events[0][0] <= now:
            when, _, ended, took = heapq.heappop(run.events)
            run.end(when, ended, took)
        run.arrive(model, now)
        if progress is not None and not i % PROGRESS_EVERY:
            progress(i)
    while run.events:
        when, _, ended, took = heapq.heappop(run.events)
        run.end(when, ended, took)
    return Waits(run.waits, run.loads, run.refused, run.loading_s)
