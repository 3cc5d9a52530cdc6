"""Which calls a GPU plays from a recording (`--cuda-graphs auto`).

    first calls  run as they are, a launch an op; what is asked again and again
    a trial      is recorded in a thread, on made-up weights and inputs that were
                 asked: played back its answers must agree with the eager ones, and
                 come sooner
    from then    one launch a call, for all models of the graph

A small model on a GPU is launches: an MLP of five kernels takes 117 us a call, and 25
when it is played (an H100; docs/decisions/0021).

Owns: what was asked how often, the verdicts, the slots and how much memory they and
their recordings may have. Must not: run a request's call (runtime/recorded.py), or
delay one. All state is the event loop's; the thread makes one recording at a time, and
lets go of those that leave.
"""

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog
import torch

from loader.errors import DeviceFull
from loader.load import Model
from loader.manifest import ModelSpec
from loader.placing import Placed
from loader.tape import Deck
from loader.threads import stand_back
from runtime.conformance import Fitted, Signature
from runtime.engine import SHOWN, CompiledGraph
from runtime.example import Terms, terms
from runtime.recorded import Recording, Slot, Unrecordable
from runtime.trial import Found, new_slot, trial

log = structlog.get_logger()

AFTER = 16
"""Calls of a shape before it is recorded: a thousandth of a second of launches each
way, against the milliseconds that recording takes."""

GAIN = 1.1
"""How much sooner a recording must answer, its weights copied first."""

SHAPES = 64
"""Recordings a graph: sequences of many lengths each are a shape of their own."""

KEPT = 4096
"""Shapes whose calls are counted."""

NEVER = 1 << 60
"""Calls from now until a shape is tried again."""

Key = tuple[str, tuple[str, ...], Signature, int]


@dataclass(eq=False, slots=True)
class Shelf:
    """What is recorded of one graph. `made`: recordings, the ones in vain too."""

    placed: Placed
    slot: Slot | None = None
    recordings: dict[Key, Recording] = field(default_factory=dict)
    made: int = 0
    gain: float = 0.0
    """The largest that was found."""
    reason: str = ""
    """Why a call is not recorded, the last one that is not."""

    @property
    def nbytes(self) -> int:
        """Of its slot, and of its recordings' inputs and outputs."""
        slot = self.placed.placing.nbytes
        return slot + sum([found.nbytes for found in self.recordings.values()])

    def holds(self, model: Model) -> bool:
        """True if the model's weights lie as its slot has them. A header that was
        forgotten and read anew is another object (loader/placing.py)."""
        mine, other = self.placed, model.placed
        return mine is other or mine.header == other.header


class Recordings:
    """`room`: bytes that slots and their recordings may have together; the least
    recently used slot leaves for another. One instance, one event loop."""

    def __init__(self, deck: Deck, room: int) -> None:
        self._deck = deck
        self._room = room
        self._shelves: OrderedDict[str, Shelf] = OrderedDict()
        self._seen: dict[Key, int] = {}
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(1, "recorder", initializer=stand_back)
        self._trying: asyncio.Future[Found] | None = None

    @property
    def trying(self) -> bool:
        """True while a trial is under way: the deck's turn may be the thread's, whose
        work nobody bounds, and which stands back from others."""
        return self._trying is not None

    def find(self, model: Model, asked: Fitted, rows: int) -> Recording | None:
        """What plays such a call, if anything does."""
        digest = model.graph.digest
        shelf = self._shelves.get(digest)
        if shelf is None or not shelf.holds(model):
            return None
        found = shelf.recordings.get(key(model, asked, rows))
        if found is None or found.failed:
            return None
        self._shelves.move_to_end(digest)
        return found

    def ran(self, model: Model, asked: Fitted, rows: int) -> None:
        """A call ran as it is. Seen often enough, it is recorded behind our back,
        unless another is just now."""
        what = key(model, asked, rows)
        seen = self._seen.get(what, 0)
        if seen == 0 and len(self._seen) >= KEPT:
            self._seen.clear()
        self._seen[what] = seen + 1
        if seen + 1 >= AFTER and self._trying is None:
            self._seen[what] = -NEVER
            self._try(what, model, terms(asked, what[3]))

    def _try(self, what: Key, model: Model, wanted: Terms) -> None:
        shelf = self._shelf(model)
        if shelf is None or shelf.made >= SHAPES:
            return
        left = self._make_room(shelf, 0)
        shelf.made += 1
        name, deck = model.spec.name, self._deck

        def tried() -> Found:
            left.clear()  # here: the device is waited for as they go
            if shelf.slot is None:
                shelf.slot = new_slot(model, deck)
            return trial(shelf.slot, wanted, deck)

        self._trying = self._loop.run_in_executor(self._threads, tried)
        self._trying.add_done_callback(lambda ended: self._tried(what, name, ended))

    def _tried(self, what: Key, name: str, ended: "asyncio.Future[Found]") -> None:
        self._trying = None
        if ended.cancelled():
            return
        error, shelf = ended.exception(), self._shelves.get(what[0])
        if shelf is None:
            return  # closed meanwhile
        if error is not None:
            log.info("calls stay launches", model=name, error=type(error).__name__)
            self._refused(shelf, error)
        else:
            self._found(shelf, what, name, ended.result())
        if not shelf.recordings:
            shelf.slot = None

    def _refused(self, shelf: Shelf, error: BaseException) -> None:
        shelf.reason = "cannot be"
        if isinstance(error, Unrecordable):
            shelf.reason = str(error)
        elif not isinstance(error, DeviceFull | torch.OutOfMemoryError):
            # It looks at its own numbers, say: it will with any other shape.
            shelf.made = SHAPES

    def _found(self, shelf: Shelf, what: Key, name: str, found: Found) -> None:
        pays = found.gain >= GAIN
        fits = shelf.nbytes + found.recording.nbytes <= self._room
        shelf.gain = max(shelf.gain, found.gain)
        shelf.reason = "" if pays and fits else "too large" if pays else "no sooner"
        log.info(
            "calls stay launches" if shelf.reason else "calls recorded",
            model=name,
            rows=what[3],
            gain=round(found.gain, 2),
            microseconds=round(found.played * 1e6),
        )
        if not shelf.reason:
            left = self._make_room(shelf, found.recording.nbytes)
            self._threads.submit(left.clear)
            shelf.recordings[what] = found.recording

    def _shelf(self, model: Model) -> Shelf | None:
        """That of its graph, or a new one; None if there can be none."""
        digest = model.graph.digest
        shelf = self._shelves.get(digest)
        if shelf is not None:
            return shelf if shelf.holds(model) else None
        shelf = Shelf(model.placed)
        if shelf.nbytes > self._room:
            return None
        self._shelves[digest] = shelf
        return shelf

    def _make_room(self, stays: Shelf, more: int) -> list[Shelf]:
        """For `more` bytes of a shelf that stays: those who leave, the least recently
        used first. Whoever lets go of them waits for the device."""
        over = sum([shelf.nbytes for shelf in self._shelves.values()])
        over += more - self._room
        left = []
        for digest, shelf in list(self._shelves.items()):
            if over <= 0:
                break
            if shelf is stays:
                continue
            left.append(self._shelves.pop(digest))
            over -= shelf.nbytes
            # It may earn its place anew.
            self._seen = {w: n for w, n in self._seen.items() if w[0] != digest}
        return left

    def status(self) -> list[CompiledGraph]:
        """Every graph of which a call was recorded, or tried to be."""
        return [
            CompiledGraph(
                digest[:SHOWN],
                "recorded" if shelf.recordings else "refused",
                "" if shelf.recordings else shelf.reason,
                shelf.gain, False, 0.0,
                sum(recording.calls for recording in shelf.recordings.values()), 0,
            )
            for digest, shelf in self._shelves.items()
            if shelf.recordings or shelf.reason
        ]  # fmt: skip

    def note(self, spec: ModelSpec) -> str:
        """How a model is run, for a listing; empty if as it is."""
        shelf = self._shelves.get(spec.graph.sha256)
        if shelf is None or not shelf.recordings:
            return ""
        return f"recorded, {shelf.gain:.1f}x"

    def close(self) -> None:
        """End the thread, and give back what the device held for us."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._shelves.clear()


def key(model: Model, asked: Fitted, rows: int) -> Key:
    """What calls that one recording serves have in common."""
    datatypes = tuple([piece.datatype for piece in asked.pieces])
    return model.graph.digest, datatypes, asked.signature, bucket(model, rows)


def bucket(model: Model, rows: int) -> int:
    """Rows that a recording for so many has: a power of two, or as many as go at once;
    0 for a model without rows."""
    most = model.spec.max_batch_size
    return min(1 << (rows - 1).bit_length(), most) if most else 0
