"""Ray Serve's multiplexed models, `ray[serve-grpc]==2.60.0`, one replica.

It evicts by count, so it is told how many models fit. Its gRPC proxy and its agents
listen on all addresses, with no option: it runs where there is no network.
"""

from bench.peers.contender import Contender, Venv
from bench.peers.weights import SERVERS


def ray(room: int) -> Contender:
    """With room for so many models."""
    return Contender(
        "ray",
        "Ray Serve multiplex",
        lambda site: [
            *(site.python, str(SERVERS / "ray_server.py"), str(site.grpc_port)),
            *(str(site.http_port), str(site.models), str(room)),
            str(site.folder / "ray"),
        ],
        venv=Venv("ray", ("ray[serve-grpc]==2.60.0",)),
        environ=lambda site: {"RAY_USAGE_STATS_ENABLED": "0"},
        everywhere=True,
        metadata=lambda model: (
            ("application", "fleet"),
            ("multiplexed_model_id", model),
        ),
    )
