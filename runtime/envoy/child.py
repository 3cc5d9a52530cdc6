"""A child of the supervisor becomes Envoy, which has a front end in it.

Owns: what it must know before: the settings, which it finds in the first message.
Must not: take that message: it is left for the front end (runtime/envoy/front.py), with
the descriptors that came along. Must not: import torch or grpc.
"""

import socket
import sys

from runtime.config import Settings
from runtime.envoy.launch import CannotLaunch, launch_child
from runtime.tree.control import Begin, first_of


def main(fd: int) -> int:
    """Become Envoy. Returns the exit code of a process that could not."""
    end = socket.socket(fileno=fd)
    begin = first_of(end)
    end.detach()  # it stays open for whoever we become
    if not isinstance(begin, Begin):
        return 1  # the supervisor went before it had said anything
    settings = Settings.model_validate(begin.values)
    try:
        launch_child(settings, begin.folder, fd)
    except CannotLaunch as error:
        sys.stderr.write(f"hotset serve: {error}\n")
    return 1
