"""Envoy's admin interface, over a Unix socket that only this process may open.

Owns: the three things we ask of it: where it listens, that it begins to drain, that it
ends. Must not: be awaited on a hot path; each question is a connection.
"""

import asyncio
import http.client
import json
import socket

from runtime.envoy.bootstrap import LISTENER

TIMEOUT_S = 5.0
LOOK_AGAIN_S = 0.02


class Admin:
    """Envoy, steered. `path`: of the socket."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.over = False
        """True once Envoy ends: its socket still takes questions, and answers none."""

    async def listening(self) -> list[str]:
        """The addresses Envoy listens on, our listener's first; waits until it does."""
        while True:
            try:
                if await self._ask("GET", "/ready") == "LIVE\n":
                    break
            except OSError:
                pass  # not yet
            await asyncio.sleep(LOOK_AGAIN_S)
        answer = json.loads(await self._ask("GET", "/listeners?format=json"))
        ours_first = sorted(
            answer["listener_statuses"], key=lambda one: one["name"] != LISTENER
        )
        return [
            _dialled(address["socket_address"])
            for listener in ours_first
            for address in (
                listener["local_address"],
                *listener.get("additional_local_addresses", ()),
            )
            if "socket_address" in address
        ]

    async def drain(self) -> None:
        """Tell clients to go elsewhere; those who come all the same are served on."""
        await self._ask("POST", "/drain_listeners?graceful&skip_exit")

    async def quit(self) -> None:
        """End Envoy, in order."""
        await self._ask("POST", "/quitquitquit")

    async def _ask(self, method: str, path: str) -> str:
        if self.over:
            raise OSError("Envoy has ended")
        return await asyncio.to_thread(self._asked, method, path)

    def _asked(self, method: str, path: str) -> str:
        connection = _Unix(self._path)
        try:
            connection.request(method, path, headers={"host": "hotset"})
            return connection.getresponse().read().decode()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("hotset", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _dialled(address: dict[str, object]) -> str:
    host, port = str(address["address"]), address["port_value"]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
