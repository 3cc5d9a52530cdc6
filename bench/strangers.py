"""Strangers that want the cores: what other pods of a node are at their worst.

Owns: their processes, each of which does sums for ever, at the usual priority. Must
not: measure, or outlive the bench, however that ends.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SUMS = """
import os
bench = os.getppid()
while os.getppid() == bench:
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
    there = [subprocess.Popen([sys.executable, "-S", "-c", SUMS]) for _ in range(count)]
    try:
        yield
    finally:
        for each in there:
            each.kill()
        for each in there:
            each.wait()
