"""Which loads draw from the tap (loader/tap.py), and what is learnt from those that do.

Owns: that choice, and what is told of an answer. Must not: connect, or give up a load:
whatever does not come this way comes by the other one, which can also tell what is
wrong.
"""

from concurrent.futures import Executor

from loader.draught import Draught
from loader.placing import Placed, Placings
from loader.pour import Pouring
from loader.ranges import CHUNK, Ranges
from loader.room import Wanted
from loader.spool import Spool
from loader.tap import Tap
from loader.turns import ERRAND


class Drawing:
    """One for a loader. `threads`: all of them may be kept waiting by the store."""

    def __init__(
        self,
        tap: Tap,
        threads: Executor,
        ranges: Ranges,
        placings: Placings,
        spool: Spool | None,
    ) -> None:
        self.tap = tap
        self._threads = threads
        self._ranges = ranges
        self._placings = placings
        self._spool = spool

    async def place_of(self, spec: Wanted) -> Placed | None:
        """Where its bytes go, if they are to be drawn: the store is near, and the model
        known, verified by chunks, wanted now, and not for the disk tier, which takes
        pieces. May have a byte asked for first; raises nothing of the store's."""
        file, errand = spec.weights, ERRAND.get()
        if file.chunks is None or not self.tap.runs:
            return None
        if not (errand is None or errand.urgent):
            return None  # what waits for its turn would keep a connection waiting
        if self._spool is not None and self._spool.wants(file.identity, file.size):
            return None
        nearness = self._ranges.nearness
        if file.size > CHUNK:  # a smaller one's own answer tells
            await nearness.look(lambda: self._ranges.a_byte(spec))
        return self._placings.of(file.identity) if nearness.near else None

    async def feed(self, spec: Wanted, pouring: Pouring) -> None:
        """All its bytes. Raises what Draught does."""
        path, etag = f"{spec.directory}/{spec.weights.name}", self._ranges.etag(spec)
        draught = Draught(pouring, self.tap, path, spec.weights, etag)
        await draught.pour(self._threads)
        self._ranges.seen(spec, draught.etag)
        self._ranges.nearness.began(draught.began_s, draught.alone)
