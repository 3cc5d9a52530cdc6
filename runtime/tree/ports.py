"""The ports of a server, held by the supervisor for as long as it lives.

    HTTP, by front ends of our own     one listening socket, handed to each: no
                                       connection that waits for `accept` is lost
    all else                           SO_REUSEPORT: grpc and Envoy take no sockets

Owns: those sockets. Must not: answer anybody.
"""

import socket
from collections.abc import Mapping, Sequence

from runtime.config import Settings
from runtime.ports import listener, shared


class Ports:
    """Raises CannotListen. An operator's own configuration of Envoy knows ports that we
    do not: then none are held, and Envoy says which there are."""

    def __init__(self, settings: Settings) -> None:
        self._host = settings.host
        self._held: dict[str, socket.socket] = {}
        self._handed: list[socket.socket] = []
        envoy = settings.frontend == "envoy"
        if envoy and settings.envoy_config:
            return
        self._held["grpc"] = shared(settings.host, settings.grpc_port)
        take = shared if envoy else listener
        self._held["http"] = take(settings.host, settings.http_port)
        if not envoy:
            self._handed.append(self._held["http"])

    @property
    def handed(self) -> Sequence[int]:
        """Descriptors that each front end gets."""
        return [one.fileno() for one in self._handed]

    @property
    def settings(self) -> Mapping[str, object]:
        """The ports there are, whatever was asked for."""
        return {f"{name}_port": self._port(name) for name in self._held}

    @property
    def addresses(self) -> Mapping[str, str]:
        """Where to dial."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return {name: f"{host}:{self._port(name)}" for name in self._held}

    def close(self) -> None:
        """Let others have them."""
        for one in self._held.values():
            one.close()

    def _port(self, name: str) -> int:
        port: int = self._held[name].getsockname()[1]
        return port
