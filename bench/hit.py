"""The hit path beside its peers: requests for one resident model, over gRPC.

Every contender holds the same MLP 64-256-256-10 with the same weights and gets the same
request of the Open Inference Protocol, raw contents, one row:

    hotset-zttp     hotset serve --frontend zttp        HTTP/2 on the engine's loop
    hotset-envoy    hotset serve --frontend envoy       the front end inside Envoy
    hotset-grpcio   hotset serve --frontend grpcio      the one on grpc.aio
    grpc-aio        bench/floor_server.py               grpc.aio + torch, nothing else
    grpc-sync       bench/peers/servers/sync_server.py  grpcio's threads + torch
    triton          Triton 2.51, C++, Python backend    from the nvidia-pytriton wheel
    triton-batch    the same, its dynamic batcher on
    mlserver        MLServer 1.7.1, model in its process
    kserve          the KServe SDK 0.21's model server

and, when asked for with --only, hotset with its engine apart behind 1, 2, 4 or 8 front
ends: hotset-zttp-4, hotset-envoy-4, hotset-grpcio-2. They share out connections, not
calls: give them as many (--connections).

The client is h2load: one connection with c streams, or --connections of them, for 3,600
requests each; then it makes new ones, as h2load does not when a server asks for it
(zttp counts the streams of a connection). All
servers are up all the time and are asked in turns, A B C, C B A, ..., free on all
cores together with the client, or pinned (--server-cores, --client-cores). Reported are
medians over the rounds; CPU is that of the server's whole tree of processes. Answers
are checked by a gRPC client before, and after every run; and in every run the bytes
that came must be exactly those of so many right answers. What fails once fails its row.

Peers live in environments of their own (bench/.peers or $HOTSET_BENCH_PEERS), which a
full run makes if they are not there: about 1 GB and a minute or two each.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.progress import Progress

from bench import h2load, hit_plot, hit_results
from bench.hit_course import Course
from bench.hit_results import Results
from bench.peers import hotset, loopback, mlserver, python_grpc, triton
from bench.peers.contender import Contender
from bench.peers.kserve import KSERVE
from bench.peers.running import can_pin, why_not
from bench.result import console, finish, parser
from bench.strangers import add_option, strangers

EPILOG = """examples:
  python -m bench.hit --quick
  python -m bench.hit                                      about 10 minutes
  python -m bench.hit --only hotset-envoy,triton --rounds 9
  python -m bench.hit --concurrency 8 --connections 8      8 connections, a stream each
  python -m bench.hit --device cuda:0 --only hotset-envoy,hotset-envoy-4,grpc-aio \\
      --connections 32 --tag h100                          on a GPU
  python -m bench.hit --server-cores 0 --client-cores 1    one core for each server
  python -m bench.hit --strangers 2 --tag strangers        beside others who want both

Run it when nothing else runs. `others` in the JSON is what the rest of the machine
took."""


def contenders(device: str) -> dict[str, Contender]:
    """Everybody by name; the peers that are not ours run on the CPU."""
    apart = [
        of(device=device, processes=count)
        for of in (hotset.zttp, hotset.envoy, hotset.grpcio)
        for count in hotset.PROCESSES
    ]
    everybody = (
        *(hotset.zttp(device=device), hotset.envoy(device=device)),
        hotset.grpcio(device=device),
        *(python_grpc.aio(device), python_grpc.SYNC),
        *(triton.TRITON, triton.BATCHING_TRITON, mlserver.MLSERVER, KSERVE),
        *apart,
    )
    return {each.name: each for each in everybody}


USUAL = (
    *("hotset-zttp", "hotset-envoy", "hotset-grpcio", "grpc-aio", "grpc-sync"),
    *("triton", "triton-batch", "mlserver", "kserve"),
)
QUICK = ("hotset-zttp", "hotset-envoy", "hotset-grpcio", "triton")
CONCURRENCY = "1,8,32,128"


def able(
    everybody: Mapping[str, Contender],
    names: Sequence[str],
    quick: bool,
    results: Results,
) -> list[Contender]:
    """Those who can run here; makes environments, which takes a network."""
    found = []
    with Progress(console=console) as progress:
        bar = progress.add_task("looking for the contenders", total=len(names))
        for contender in everybody.values():
            if contender.name not in names:
                continue
            progress.update(bar, description=f"{contender.name}: is it there?")
            why = why_not(contender, makes_venvs=not quick)
            if why:
                results.skipped[contender.name] = why
            else:
                found.append(contender)
            progress.advance(bar)
    return found


def read_options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__, EPILOG)
    made.add_argument("--rounds", type=int, metavar="N",
                      help="of every cell, 5 or more for a figure to keep. Default: 5, "
                      "quick 2")  # fmt: skip
    made.add_argument("--seconds", type=float, metavar="S",
                      help="length of a run, about. Default: 2.5, "
                      "quick 0.7")  # fmt: skip
    made.add_argument("--only", default="", metavar="NAMES",
                      help="some of the contenders, with commas between. Default: all "
                      f"above, quick {','.join(QUICK)}")  # fmt: skip
    made.add_argument("--device", default="cpu", metavar="D",
                      help="of hotset and grpc-aio: cpu or cuda:N. Default: "
                      "cpu")  # fmt: skip
    made.add_argument("--concurrency", default="", metavar="NUMBERS",
                      help="requests under way. Default: "
                      f"{CONCURRENCY}, quick 1,8,32")  # fmt: skip
    made.add_argument("--connections", type=int, default=1, metavar="N",
                      help="that share them, at most one each. Default: 1")  # fmt: skip
    made.add_argument("--server-cores", default="", metavar="LIST",
                      help="pin every server there, as in taskset: 0 or 0-3. "
                      "Default: free on all")  # fmt: skip
    made.add_argument("--client-cores", default="", metavar="LIST",
                      help="pin the client there. Default: free on all")  # fmt: skip
    add_option(made)
    return _checked(made, made.parse_args())


def _checked(
    made: argparse.ArgumentParser, options: argparse.Namespace
) -> argparse.Namespace:
    names = list(contenders(options.device))
    options.names = QUICK if options.quick else USUAL
    if options.only:
        options.names = options.only.split(",")
    strange = set(options.names) - set(names)
    if strange:
        made.error(f"no such contender: {', '.join(sorted(strange))}; "
                   f"there are {', '.join(names)}")  # fmt: skip
    levels = options.concurrency or ("1,8,32" if options.quick else CONCURRENCY)
    try:
        options.concurrency = [int(level) for level in levels.split(",")]
    except ValueError:
        made.error("--concurrency: whole numbers, with commas between")
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = options.seconds or (0.7 if options.quick else 2.5)
    if min(options.rounds, options.connections, *options.concurrency) < 1:
        made.error("--rounds, --connections and --concurrency are 1 at least")
    if (options.server_cores or options.client_cores) and not can_pin():
        made.error("--server-cores and --client-cores need `taskset` (util-linux)")
    if h2load.missing():
        made.error(h2load.missing())
    return options


def main() -> None:
    """The command."""
    options = read_options()
    results = Results()
    everybody = contenders(options.device)
    found = able(everybody, options.names, options.quick, results)
    if any(each.everywhere for each in found) and not loopback.inside():
        loopback.enter("bench.hit", sys.argv[1:])
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(console=console) as progress,
        strangers(options.strangers),
    ):
        Course(options, results, progress).run(Path(folder), found)
    hit_results.show(results)
    finish(
        "hit",
        options,
        hit_results.figures(results),
        hit_results.details(results, options),
        lambda path: hit_plot.draw(results, path),
        options.device,
    )


if __name__ == "__main__":
    main()
