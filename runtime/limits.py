"""What all front ends hold their callers to, and what an operator may set of it.

Owns: those numbers, each with its reason, and `Options`. Must not: enforce any (each
front end does, in its own way), or import what takes time: who only writes
Envoy's configuration reads it too.
"""

from dataclasses import dataclass
from typing import Literal

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""A request or answer. grpc's own 4 MiB is a batch of seven images."""

PENDING_SOFT, PENDING_HARD = 12_000, 16_000
"""Calls that wait for a handler. grpc drops from 1,000 at random, and half of a burst
of 10,000 calls for one cold model is lost as CANCELLED; without any limit a flood of
reset streams takes half a GiB. So: 1.5 times the burst we promise to take."""

MAX_METADATA, ABSOLUTE_MAX_METADATA = 8 * 1024, 16 * 1024
"""Headers: refused at random between the two, always above."""

KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 30, 10
"""Half-open connections are found within 40 s."""

IDLE_S = 300
"""Connections that nobody uses are closed."""

STUCK_S = 60
"""For a caller to take something of the answers that wait for it (`zttp`)."""

CONNECTION_AGE_S = 3600
"""Once an hour clients connect anew, and so find new replicas."""

BODY_S = 60.0
"""For the body of a call with one message, whatever its deadline."""

LAST_WORDS_S = 1.0
"""Given to answers that are being written, and then to leases that are being ended,
once the engine is drained or the grace is over."""

QUIET_S = 0.1
"""So long without a new call, and the listener may go."""


Readiness = Literal["servable", "resident"]
"""What ModelReady means. A cold model is ready when a request would load it
("servable"), or only once it is in memory ("resident", as Triton has it; a probe that
waits for that may wait for ever)."""


@dataclass(frozen=True, slots=True)
class Options:
    """What an operator may set. `grace`: seconds from SIGTERM until running calls are
    cut. `reuse_port`: several processes share one port on purpose."""

    max_message_bytes: int = MAX_MESSAGE_BYTES
    grace: float = 30.0
    reuse_port: bool = False
    name: str = "hotset"
    ready_means: Readiness = "servable"
    reflection: bool = True
