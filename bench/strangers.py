"""Strangers that want the cores: what other pods of a node are at their worst.

Owns: their processes, each of which does sums for ever, at the usual priority. Must
not: measure, or outlive the bench, however that ends.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SUMS = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(100_000):
        pass
"""


def add_option(made: argparse.ArgumentParser) -> None:
    """`--strangers N`."""
    made.add_argument(
        "--strangers",
        type=_count,
        default=0,
        metavar="N",
        help="processes that want a core each meanwhile, as other pods of a node may. "
        "Default: 0",
    )


@contextmanager
def strangers(count: int) -> Iterator[None]:
    """So many, until the block ends."""
    # Who its parent is has to be told: by the time it looks, that may be gone.
    command = [sys.executable, "-S", "-c", SUMS, str(os.getpid())]
    there: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            # Ctrl-C is for the bench, which then ends them.
            started = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, start_new_session=True
            )
            there.append(started)
        yield
    finally:
        for each in there:
            each.kill()
        for each in there:
            each.wait()


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError("0 or more")
    return count
