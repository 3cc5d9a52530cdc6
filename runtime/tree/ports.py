"""The ports of a server, held by the supervisor for as long as it lives.

    HTTP, by front ends of our own     one listening socket, handed to each: no
                                       connection that waits for `accept` is lost
    all else                           SO_REUSEPORT: grpc and Envoy take no sockets

Owns: those sockets. Must not: answer anybody.
"""

import socket
from collections.abc import Mapping, Sequence

from runtime.config import Settings
from runtime.ports import CannotListen, Shared, listener


class Ports:
    """Raises CannotListen. An operator's own configuration of Envoy knows ports that we
    do not: then none are held, and Envoy says which there are."""

    def __init__(self, settings: Settings) -> None:
        self._host = settings.host
        self._held: list[socket.socket | Shared] = []
        self._handed: list[socket.socket] = []
        self._ports: dict[str, int] = {}
        envoy = settings.frontend == "envoy"
        if envoy and settings.envoy_config:
            return
        try:
            self._share("grpc", settings.grpc_port)
            if envoy:
                self._share("http", settings.http_port)
            else:
                http = listener(settings.host, settings.http_port)
                self._held.append(http)
                self._handed.append(http)
                self._ports["http"] = http.getsockname()[1]
        except CannotListen:
            self.close()
            raise

    def _share(self, name: str, port: int) -> None:
        held = Shared(self._host, port)
        self._held.append(held)
        self._ports[name] = held.port

    @property
    def handed(self) -> Sequence[int]:
        """Descriptors that each front end gets."""
        return [one.fileno() for one in self._handed]

    @property
    def settings(self) -> Mapping[str, object]:
        """The ports there are, whatever was asked for."""
        return {f"{name}_port": port for name, port in self._ports.items()}

    @property
    def addresses(self) -> Mapping[str, str]:
        """Where to dial."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return {name: f"{host}:{port}" for name, port in self._ports.items()}

    def close(self) -> None:
        """Let others have them."""
        for one in self._held:
            one.close()
