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
        type=int,
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
    there = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for each in there:
            each.kill()
        for each in there:
            each.wait()
