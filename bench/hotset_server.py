"""hotset under a chosen event loop, for the side-by-side of bench/floor.py.

Owns: nothing but that choice: the rest is `runtime.compose.serve`, as `hotset serve`
calls it. Must not: set anything else.
"""

import argparse
import asyncio
import os

import uvloop

from runtime import logs, poller
from runtime.sources import load


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="hotset under a chosen event loop.")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), required=True)
    parser.add_argument("--store", required=True)
    options = parser.parse_args()
    poller.spare_a_hop(os.environ)
    from runtime import compose  # only now: it imports grpc

    logs.configure("json", "info")
    flags = {"store": options.store, "device": "cpu", "grpc_port": 0, "http_port": 0}
    settings = load(flags)
    factory = uvloop.new_event_loop if options.loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(compose.serve(settings))


if __name__ == "__main__":
    raise SystemExit(main())
