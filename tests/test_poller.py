"""The switch that spares a hop: grpc knows it, and the operator has the last word."""

import subprocess
import sys

from runtime.poller import OURS, VARIABLE, spare_a_hop

SERVE = """
import asyncio, grpc.aio
async def main():
    server = grpc.aio.server()
    server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await server.stop(0)
asyncio.run(main())
"""


def started_with(environ: dict[str, str]) -> str:
    """What grpc says of its experiments when a server starts."""
    ended = subprocess.run(
        [sys.executable, "-c", SERVE],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ended.stderr


def test_grpc_knows_the_switch() -> None:
    """An upgrade that takes it away shows here, and not as a slower server."""
    environ: dict[str, str] = {}
    spare_a_hop(environ)
    assert "Unknown experiment" not in started_with(environ)
    assert "Unknown experiment" in started_with({VARIABLE: "-no_such_thing"})


def test_what_the_operator_says_stands() -> None:
    environ = {VARIABLE: "work_stealing"}
    spare_a_hop(environ)
    assert environ == {VARIABLE: "work_stealing"}
    environ = {}
    spare_a_hop(environ)
    assert environ == {VARIABLE: OURS}
