"""What a GPU is told of loading: how near to the link, and how exact the ledger.

    ceiling       a copy of as many bytes from locked host memory: the most there is
    host tier     hotset brings back what it evicted, beside the ceiling
    page cache    hotset from the file, every digest checked, beside safetensors,
                  fastsafetensors, InstantTensor and Run:ai's streamer, which check none
    drift         1,000 swaps through the engine with room for half of the models:
                  what NVML says is used, before and after, as a share of the budget

Models of 4, 32, 200 MB and 1 GB, 150 tensors each, lie in /dev/shm if there is room. A
load ends when every byte is on the device and it has been waited for. All take turns,
A B C, C B A, ..., each library in a process of its own; each one's bytes are compared
with the file's once. A library that is missing, fails or hangs is told and left out.
"""

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import Progress

from bench import load_models
from bench.load_peers import CPU
from bench.load_results import LOCAL, Results
from bench.result import console, finish, parser
from bench.vram_hands import Hand, Lost, begun
from bench.vram_peers import makers
from bench.vram_plot import plot
from bench.vram_results import HOST, figures, said, show, source_of
from bench.vram_swaps import QUICK_WIDTHS, WIDTHS, Swapped, Wanted, swapped
from bench.vram_worker import RUN, WARM_UP, Job
from runtime import logs

EPILOG = """examples:
  python -m bench.vram --quick
  python -m bench.vram --tag h100
  python -m bench.vram --sizes 200 --swaps 0      the host tier and the libraries only
  python -m bench.vram --quick --device cpu       the same code without a GPU: no figure
                                                  of it says anything of one

The libraries are optional: those that are not installed are named. To have them all:
  pip install fastsafetensors==0.5.0 instanttensor==0.2.2 runai-model-streamer==0.17.0
Run it when nobody else uses the GPU: drift is read for the whole device."""

FULL = {4: 20, 32: 12, 200: 11, 1000: 5}
QUICK = {4: 8, 200: 5}
SWAPS, QUICK_SWAPS = 1000, 300
ROUNDS_S, QUICK_ROUNDS_S = 45.0, 20.0
"""Seconds for all rounds; then two of each size have to do."""
SWAPS_S, QUICK_SWAPS_S = 20.0, 10.0
ROOM = 4_000_000_000
"""Bytes that /dev/shm must have free for the files to go there."""


class Course:
    """One run: who takes part, and what was seen."""

    def __init__(self, options: argparse.Namespace, progress: Progress) -> None:
        self._options = options
        self._device = torch.device(options.device)
        self._progress = progress
        self._all: list[Hand] = []
        self._hands: dict[str, Hand] = {}
        self.results = Results()
        self.swapped: Swapped | None = None

    async def run(self, folder: Path) -> None:
        """Everything, in order; whatever fails is told, and the rest goes on."""
        try:
            await self._begin(folder)
            seconds = QUICK_ROUNDS_S if self._options.quick else ROUNDS_S
            until = time.monotonic() + seconds
            for size, rounds in self._options.plan.items():
                await self._size(size, rounds, until)
        finally:
            await asyncio.gather(*(hand.end() for hand in self._all))
        if self._options.swaps:
            await self._swap(folder / "fleet")

    async def _begin(self, folder: Path) -> None:
        """Make the models while the workers import torch."""
        names = [n for n in makers("", self._device) if n not in self._options.skip]
        alone = [[name] for name in names if source_of(name) != HOST]
        groups = [[name for name in names if source_of(name) == HOST], *alone]
        hired = (self._hire(group, folder) for group in groups if group)
        await asyncio.gather(asyncio.to_thread(self._make, folder), *hired)

    def _make(self, folder: Path) -> None:
        bar = self._progress.add_task("making models", total=len(self._options.plan))
        for size in self._options.plan:
            load_models.make(folder, size, tensorized=False)
            self._progress.advance(bar)

    async def _hire(self, names: Sequence[str], folder: Path) -> None:
        hand = await begun(Job(names, str(folder), str(self._device)), folder)
        self._all.append(hand)
        try:
            failed = await hand.made(names)
        except Lost as reason:
            failed = dict.fromkeys(names, str(reason))
        self.results.absent.update(failed)
        self._hands.update({name: hand for name in names if name not in failed})

    async def _size(self, size: int, rounds: int, until: float) -> None:
        bar = self._progress.add_task(f"{size} MB", total=rounds + 1)
        order = [name for name in makers("", self._device) if name in self._hands]
        able = [name for name in order if await self._asked(WARM_UP, name, size)]
        self._progress.advance(bar)
        for number in range(rounds):
            if number >= 2 and time.monotonic() > until:
                break
            turn = able if number % 2 == 0 else able[::-1]
            lost = {name for name in turn if not await self._asked(RUN, name, size)}
            able = [name for name in able if name not in lost]
            self._progress.advance(bar)

    async def _asked(self, do: str, name: str, size: int) -> bool:
        """One order; False if nothing came of it."""
        hand = self._hands.get(name)
        if hand is None:  # it went with the one it shares a process with
            return False
        try:
            row = await hand.asked(do, name, size)
        except Lost as reason:
            for other in [n for n, its in self._hands.items() if its is hand]:
                self.results.absent[f"{other}, {size} MB and more"] = str(reason)
                del self._hands[other]
            return False
        if "failed" in row:
            self.results.absent[f"{name}, {size} MB"] = str(row["failed"])
            return False
        return do == WARM_UP or self.results.told(source_of(name), row)

    async def _swap(self, folder: Path) -> None:
        swaps = self._options.swaps
        wanted = (
            Wanted(swaps, 24, QUICK_WIDTHS, QUICK_SWAPS_S)
            if self._options.quick
            else Wanted(swaps, 64, WIDTHS, SWAPS_S)
        )
        try:
            self.swapped = await swapped(folder, self._device, wanted, self._progress)
        except Exception as error:  # noqa: BLE001 - what was measured so far is kept
            self.results.absent["drift"] = f"{type(error).__name__}: {error}"


def read_options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, EPILOG)
    made.add_argument("--device", default="cuda:0", help="Default: cuda:0")
    made.add_argument("--sizes", default="", metavar="MB,...",
                      help="only these of 4, 32, 200, 1000")  # fmt: skip
    made.add_argument("--skip", default="", metavar="NAME,...",
                      help="leave out, of: " + "; ".join(makers("", CPU)))  # fmt: skip
    made.add_argument("--rounds", type=float, default=1.0, metavar="FACTOR",
                      help="times the usual rounds. Default: 1")  # fmt: skip
    made.add_argument("--swaps", type=int, metavar="N",
                      help="0 leaves the drift out. Default: 1000")  # fmt: skip
    options = made.parse_args()
    if options.device == "cuda":
        options.device = "cuda:0"
    if options.swaps is None:
        options.swaps = QUICK_SWAPS if options.quick else SWAPS
    plan = QUICK if options.quick else FULL
    sizes = [size for size in options.sizes.split(",") if size] or list(map(str, plan))
    options.skip = [name.strip() for name in options.skip.split(",") if name]
    strange = {*sizes} - {*map(str, FULL)} | {*options.skip} - {*makers("", CPU)}
    if strange or options.swaps < 0 or options.rounds <= 0:
        told = ", ".join(sorted(strange)) or "fewer than none"
        made.error(f"not understood: {told}; see --help")
    options.plan = {
        size: max(1, round(plan.get(size, FULL[size]) * options.rounds))
        for size in sorted(map(int, sizes))
    }
    return options


def check_device(name: str) -> None:
    """Raises SystemExit where there is nothing to measure on."""
    if name != "cpu" and not torch.cuda.is_available():
        raise SystemExit(
            f"bench.vram needs a GPU, and torch {torch.__version__} sees no CUDA "
            "device here; --device cpu tries the same code without one"
        )


def roomy() -> str | None:
    """A folder in memory for the files, so that every read is from memory for all; the
    usual one if that has no room."""
    shm = Path("/dev/shm")
    roomy = shm.is_dir() and shutil.disk_usage(shm).free > ROOM
    return str(shm) if roomy else None


def main() -> None:
    """Measure and tell."""
    options = read_options()
    check_device(options.device)
    logs.configure("console", "warning")
    # As Ctrl-C does: the workers end before we do.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    made = tempfile.TemporaryDirectory(prefix="vram-", dir=roomy())
    with made as folder, Progress(console=console) as progress:
        course = Course(options, progress)
        asyncio.run(course.run(Path(folder)))
    results, device = course.results, torch.device(options.device)
    show(results)
    finish(
        "vram",
        options,
        figures(results, course.swapped, device),
        {"folder": roomy(), **said(results, {LOCAL: options.plan}, course.swapped)},
        lambda path: plot(results, course.swapped, path),
        options.device,
    )


if __name__ == "__main__":
    main()
