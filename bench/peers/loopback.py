"""A place without a network: for servers that listen on all addresses.

Owns: how a bench puts itself, its servers and its client into a network namespace with
nothing but the loopback interface. Must not: change the one that it was started in.

Needs `unshare` (util-linux) and `ip` (iproute2), and a kernel that lets a user make
namespaces; many containers do not.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

INSIDE = "HOTSET_BENCH_LOOPBACK"
"""Set in the environment of a bench that is in such a place."""

_UNSHARE = ("unshare", "--map-root-user", "--net")
_UP = 'ip link set lo up && exec "$@"'


def inside() -> bool:
    """True if there is nobody to hear us."""
    return INSIDE in os.environ


def missing() -> str:
    """Why we cannot go there; empty if we can."""
    if inside():
        return ""
    for tool in ("unshare", "ip"):
        if shutil.which(tool) is None:
            return f"it listens on all addresses, and there is no `{tool}` to hide it"
    tried = subprocess.run(
        [*_UNSHARE, "sh", "-c", _UP, "sh", "true"],
        capture_output=True,
        check=False,
    )
    if tried.returncode:
        return (
            "it listens on all addresses, and this machine lets us make no namespace "
            "to hide it in"
        )
    return ""


def enter(module: str, arguments: Sequence[str]) -> None:
    """Start this bench again, in there, in our place. Does not return."""
    os.environ[INSIDE] = "1"
    command = [sys.executable, "-m", module, *arguments]
    sys.stdout.flush()
    os.execvp(_UNSHARE[0], [*_UNSHARE, "sh", "-c", _UP, "sh", *command])
