"""Ports: taking them, or saying why not.

Owns: listening sockets, and ports that several processes of ours share and no process
of others gets. Must not: serve.
"""

import socket


class CannotListen(Exception):
    """The address is taken, or is not ours to take."""


BACKLOG = 128


def listener(host: str, port: int) -> socket.socket:
    """A listening socket, bound before anything is promised. Raises CannotListen."""
    made = _socket(host)
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


def shared(host: str, port: int) -> socket.socket:
    """Holds a port on which processes of ours may listen with SO_REUSEPORT.

    A second server is refused here, before its processes could share the port with
    ours: that takes no more than the same user and the same option.
    """
    with listener(host, port) as probe:
        port = probe.getsockname()[1]
    holder = _socket(host)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind((host, port))
    return holder


def _socket(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.socket(family, socket.SOCK_STREAM)
