"""Ports: taking them, or saying why not.

Owns: listening sockets, and ports that several processes of ours share and no process
of others gets. Must not: serve.
"""

import socket


class CannotListen(Exception):
    """The address is taken, or is not ours to take."""


BACKLOG = 128


def listener(host: str, port: int, shared: bool = False) -> socket.socket:
    """A listening socket, bound before anything is promised. `shared`: with other
    processes of ours (see Shared). Raises CannotListen."""
    made = _socket(host)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # A restart must not wait for the connections of the last run to time out.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise CannotListen(
            f"cannot listen on {host}:{port}: is another server there already? "
            "Choose another port (0: a free one)"
        ) from error
    made.setblocking(False)
    return made


class Shared:
    """Holds a port on which processes of ours may listen with SO_REUSEPORT.

    A second server of ours is refused here, before its processes could share the port
    with ours: that takes no more than the same user and the same option. A port that is
    bound keeps nobody off, and front ends that are being replaced do not listen; so a
    name is held as well, which one process of a network namespace can have (unix(7),
    abstract addresses), and which goes with it. Raises CannotListen.
    """

    def __init__(self, host: str, port: int) -> None:
        with listener(host, port) as probe:
            self.port: int = probe.getsockname()[1]
        self._name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._name.bind(f"\0hotset-port-{host}-{self.port}")
        except OSError as error:
            self._name.close()
            raise CannotListen(
                f"cannot listen on {host}:{self.port}: another hotset serves there"
            ) from error
        self._holder = _socket(host)
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._holder.bind((host, self.port))

    def close(self) -> None:
        """Let others have it."""
        self._holder.close()
        self._name.close()


def _socket(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.socket(family, socket.SOCK_STREAM)
