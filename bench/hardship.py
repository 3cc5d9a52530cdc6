"""All front ends under what the world does to servers: which one stands it best?

Each front end serves the same three models in a process of its own, in turns:

  burst    10,000 calls at once for a model that is not there yet
  large    messages of 60 MiB, there and back, and what a small caller sees meanwhile
  resets   streams opened and reset, four connections at a time, made anew when cut
  slow     500 silent connections and 200 that say half a sentence
  growth   memory over many requests (h2load, 32 at a time)
  drain    SIGTERM with 16 callers under way

The judgement is docs/decisions/0014.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from rich.progress import Progress
from torch import nn

from bench import hardship_trials as trials
from bench.floor_server import mlp
from bench.hardship_trials import Found
from bench.process import Server, hotset, servers
from bench.result import Figure, console, finish, parser
from bench.traffic import example, one_model
from loader.pack import export, write

EPILOG = """examples:
  python -m bench.hardship --quick
  python -m bench.hardship --rounds 5"""

FRONTENDS = ("grpcio", "envoy", "zttp")
Trial = Callable[[Server], Awaitable[Found]]


class Same(nn.Module):
    """What comes goes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See Module."""
        return x + 0.0


def models(store: Path) -> None:
    """A small one, a cold one, and one whose messages are large."""
    one_model(store)
    write(export(mlp(seed=1), {"x": example()}), store / "cold" / "1")
    wide = torch.zeros(1, trials.LARGE_ELEMENTS)
    write(export(Same(), {"x": wide}, max_batch_size=0), store / "same" / "1")


async def one_round(frontend: str, store: Path, quick: bool) -> Mapping[str, Found]:
    """All trials, one after the other, on a server of its own."""
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        command = hotset(store, "--frontend", frontend)
        chosen: dict[str, Trial] = {
            "burst": partial(trials.burst, count=1000 if quick else trials.BURST),
            "large": partial(trials.large, times=1 if quick else 5),
            "resets": partial(trials.resets, rounds=2 if quick else 20),
            "slow": partial(trials.slow, seconds=0.5 if quick else 3.0),
            "growth": partial(
                trials.growth, folder=place, requests=3_000 if quick else 150_000
            ),
            "drain": trials.drain,
        }
        with servers([(frontend, command)], place) as (server,):
            for name, trial in chosen.items():
                found[name] = await trial(server)
                if name != "drain":
                    found[name]["rss_mib"] = trials.resident_mib(server)
    return found


def medians(rounds: list[Mapping[str, Found]]) -> dict[str, Found]:
    """The middle of each number over the rounds."""
    return {
        trial: {
            key: sorted(found[trial][key] for found in rounds)[len(rounds) // 2]
            for key in rounds[0][trial]
        }
        for trial in rounds[0]
    }


def figures(found: Mapping[str, Mapping[str, Found]]) -> dict[str, Figure]:
    """What must hold for each, and what is told of all."""
    goals = {
        "burst.lost": 0.0,
        "drain.exit_code": 0.0,
        "drain.callers_not_told_unavailable": 0.0,
        "growth.grown_kib_a_request": 0.1,
    }
    return {
        f"{frontend}.{trial}.{key}": Figure(value, "", goals.get(f"{trial}.{key}"))
        for frontend, by_trial in found.items()
        for trial, numbers in by_trial.items()
        for key, value in numbers.items()
    }


def measure(options: argparse.Namespace) -> dict[str, list[Mapping[str, Found]]]:
    """Rounds in turns: the front ends share whatever else the machine does."""
    rounds: dict[str, list[Mapping[str, Found]]] = {name: [] for name in FRONTENDS}
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as bar:
        store = Path(folder)
        models(store)
        count = 1 if options.quick else options.rounds
        task = bar.add_task("hardships", total=count * len(FRONTENDS))
        for number in range(count):
            order = FRONTENDS if number % 2 == 0 else FRONTENDS[::-1]
            for frontend in order:
                found = asyncio.run(one_round(frontend, store, options.quick))
                rounds[frontend].append(found)
                bar.advance(task)
    return rounds


def main() -> None:
    """Measure and tell."""
    made = parser(__doc__, EPILOG)
    made.add_argument("--rounds", type=int, default=3, help="of each. Default: 3")
    options = made.parse_args()
    rounds = measure(options)
    found = {name: medians(all_of) for name, all_of in rounds.items()}
    finish("hardship", options, figures(found), {"rounds": rounds})


if __name__ == "__main__":
    main()
