"""hotset over a folder that answers as late as a store far away, for bench/drift.py.

Owns: nothing but that delay: the rest is `runtime.compose.serve`, as `hotset serve`
calls it. Must not: set anything else.
"""

import argparse
import asyncio

from bench.far import Far
from runtime import compose, logs
from runtime.sources import load


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="hotset over a far store.")
    parser.add_argument("--store", required=True)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--budget", required=True)
    parser.add_argument("--access-log", required=True)
    options = parser.parse_args()
    logs.configure("json", "info")
    ports = {"device": "cpu", "grpc_port": 0, "http_port": 0}
    settings = load({**vars(options), **ports}, None, {})
    far = Far.open(options.store)
    return asyncio.run(compose.serve(settings, far))


if __name__ == "__main__":
    raise SystemExit(main())
