"""Many models in little memory: 200 of 5.07 MB, room for 40, Zipf 0.9, 8 callers.

    hotset-zttp       hotset serve --frontend zttp      its default policy
    hotset-envoy      hotset serve --frontend envoy
    hotset-grpcio     hotset serve --frontend grpcio
    hotset-host       hotset-zttp with a --host-cache that holds the whole fleet
    diy               bench/peers/servers/diy_server.py: grpc.aio, LRU by bytes, single
                      flight, torch.load in two threads
    diy-safetensors   the same, mapping safetensors files instead
    ray               Ray Serve's multiplexed models, one replica, LRU by count

All get the same memory for resident models, the same streams in the same order and one
client process. The files are in everybody's page cache, which is memory as well, if
nobody's; `hotset-host` has as much again as its own and reads each file once, so its
row is told apart. hotset verifies what it reads, nobody else does.

Servers stay up and are asked in turns, A B C, C B A, ...: the first stream finds
nothing loaded and is told apart; figures are medians over those that follow. Every
answer is held against its own model's reference; one wrong or failed answer fails a
row. A cold request is one that did not find its model resident.

Ray lives in an environment of its own (bench/.peers or $HOTSET_BENCH_PEERS), which a
full run makes if it is not there.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from bench import fleet_plot, fleet_results
from bench.fleet_course import Course
from bench.fleet_models import SAVED, STORE, Fleet, make
from bench.fleet_results import HOST, Results
from bench.peers import hotset, loopback
from bench.peers.contender import Contender
from bench.peers.diy import diy
from bench.peers.ray import ray
from bench.peers.running import why_not
from bench.result import console, finish, parser
from bench.strangers import add_option, strangers

EPILOG = """examples:
  python -m bench.fleet --quick
  python -m bench.fleet                                about 5 minutes
  python -m bench.fleet --only hotset-envoy,diy --rounds 9
  python -m bench.fleet --room 80 --requests 10000
  python -m bench.fleet --only hotset-envoy,diy --strangers 2 --tag strangers
  python -m bench.fleet --device cuda:0 --tag h100     on a GPU, without ray

Run it when nothing else runs; `others` in the JSON is what the rest took."""

QUICK = ("hotset-zttp", "hotset-envoy", HOST, "diy", "diy-safetensors")
EACH = 5_100_000
"""Bytes of memory for a model: 5.07 MB, and what a server rounds it up to. So much for
40 of them is too little for 41."""


def contenders(room: int, models: int = 1, device: str = "cpu") -> list[Contender]:
    """All of them, with room for so many of the models."""
    budget, fleet = room * EACH, models * EACH
    own = "--budget", str(budget)
    return [
        hotset.zttp(*own, device=device),
        hotset.envoy(*own, device=device),
        hotset.grpcio(*own, device=device),
        replace(
            hotset.zttp(*own, "--host-cache", str(fleet), device=device),
            name=HOST,
            label="hotset (zttp, host tier)",
        ),
        diy("torch", budget, device),
        diy("safetensors", budget, device),
        ray(room),
    ]


def able(options: argparse.Namespace, results: Results) -> list[Contender]:
    """Those who can run here; makes environments, which takes a network."""
    found = []
    with Progress(console=console) as progress:
        bar = progress.add_task("looking", total=len(options.names))
        for contender in contenders(options.room, options.models, options.device):
            if contender.name not in options.names:
                continue
            progress.update(bar, description=f"{contender.name}: is it there?")
            why = why_not(contender, makes_venvs=not options.quick)
            if why:
                results.skipped[contender.name] = why
            else:
                found.append(contender)
            progress.advance(bar)
    return found


def reads(fleet: Fleet) -> Callable[[Contender], Path]:
    """The form in which each finds the models."""

    def of(contender: Contender) -> Path:
        saved = contender.name in ("diy", "ray")
        return fleet.folder / (SAVED if saved else STORE)

    return of


def read_options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, EPILOG)
    made.add_argument("--rounds", type=int, metavar="N",
                      help="after the one from cold, 5 or more for a figure to keep. "
                      "Default: 5, quick 1")  # fmt: skip
    made.add_argument("--requests", type=int, metavar="N",
                      help="of a round. Default: 3000, quick 500")  # fmt: skip
    made.add_argument("--models", type=int, default=200, metavar="N",
                      help="Default: 200")  # fmt: skip
    made.add_argument("--room", type=int, default=40, metavar="N",
                      help="models that fit. Default: 40")  # fmt: skip
    made.add_argument("--only", default="", metavar="NAMES",
                      help="some of the contenders, with commas between. Default: all, "
                      f"quick {','.join(QUICK)}")  # fmt: skip
    made.add_argument("--seed", type=int, default=0, metavar="N",
                      help="of the streams. Default: 0")  # fmt: skip
    made.add_argument("--device", default="cpu", metavar="D",
                      help="of all but ray: cpu or cuda:N. Default: cpu")  # fmt: skip
    add_option(made)
    options = made.parse_args()
    names = [contender.name for contender in contenders(1)]
    on_gpu = [name for name in names if name != "ray"]
    usual = names if options.device == "cpu" else on_gpu
    options.names = QUICK if options.quick else usual
    if options.only:
        options.names = options.only.split(",")
    strange = set(options.names) - set(names)
    if strange:
        made.error(f"no such contender: {', '.join(sorted(strange))}; "
                   f"there are {', '.join(names)}")  # fmt: skip
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.requests = options.requests or (500 if options.quick else 3000)
    if not 0 < options.room <= options.models or options.rounds < 1:
        made.error("--rounds and --room are 1 at least, --room no more than --models")
    return options


def measure(
    options: argparse.Namespace, results: Results, chosen: Sequence[Contender]
) -> None:
    """Make the fleet, then the whole course."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(console=console) as progress,
        strangers(options.strangers),
    ):
        bar = progress.add_task("making models", total=options.models)
        fleet = make(
            Path(folder),
            options.models,
            lambda: progress.advance(bar),
        )
        Course(options, results, progress).run(fleet, chosen, reads(fleet))


def main() -> None:
    """The command."""
    options = read_options()
    results = Results()
    chosen = able(options, results)
    if any(each.everywhere for each in chosen) and not loopback.inside():
        loopback.enter("bench.fleet", sys.argv[1:])
    measure(options, results, chosen)
    fleet_results.show(results)
    finish(
        "fleet",
        options,
        fleet_results.figures(results),
        fleet_results.details(results, options),
        lambda path: fleet_plot.draw(results, path),
        options.device,
    )


if __name__ == "__main__":
    main()
