"""In a child: no life without the parent.

Owns: that. Must not: import anything that takes time: whoever is killed while its
children still import would leave them behind for as long.
"""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """End when the parent does, however that ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before we asked
        raise SystemExit(1)
