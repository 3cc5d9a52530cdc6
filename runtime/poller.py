"""Which thread reads gRPC's sockets: the one that tells the event loop of it.

grpc's core has pollers of its own (its event engine), whose threads hand what they
read to the thread that grpc.aio waits with, and that wakes the event loop: two hops for
each step of a call. Without them the waiting thread reads for itself: 18 % less CPU a
request for one caller and 11 % for eight, p50 13 % and 4 % lower (h2load, two cores,
medians of alternating rounds). It is switched off for servers only; clients keep it.

Owns: that switch, an "experiment" that is on by default. Must not: import grpc: its
core reads the variable as it is imported. A grpc that does not know the name any more
logs so once and goes on with its own pollers.
"""

from collections.abc import MutableMapping

VARIABLE = "GRPC_EXPERIMENTS"
OURS = "-event_engine_listener"


def spare_a_hop(environ: MutableMapping[str, str]) -> None:
    """Have the core read in the waiting thread, unless the operator has said more."""
    environ.setdefault(VARIABLE, OURS)
