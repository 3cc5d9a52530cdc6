"""The smallest honest servers on grpcio and torch: one model, nothing else.

What a Python server costs before it does anything for you: bench/floor_server.py on
grpc.aio, bench/peers/servers/sync_server.py on a pool of threads.
"""

from bench.peers.contender import Contender


def aio(device: str = "cpu") -> Contender:
    """On grpc.aio."""
    return Contender(
        "grpc-aio",
        "grpc.aio + torch",
        lambda site: [
            *(site.python, "-m", "bench.floor_server"),
            *("--port", str(site.grpc_port), "--device", device),
        ],
    )


SYNC = Contender(
    "grpc-sync",
    "grpc sync + torch",
    lambda site: [
        *(site.python, "-m", "bench.peers.servers.sync_server", str(site.grpc_port))
    ],
)
