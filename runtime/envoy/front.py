"""A front end inside Envoy: gRPC and HTTP over an engine that is elsewhere, as
runtime/tree/front.py is one in a process of our own.

Owns: its composition. Must not: listen to signals: the supervisor says when it ends.
"""

import contextlib
import socket

import structlog

from runtime import collector, logs
from runtime.config import Settings
from runtime.envoy.serving import serving_of
from runtime.envoy.stage import Stage, first
from runtime.tree.control import Up
from runtime.tree.front import engine_for
from runtime.tree.member import Member, beating

log = structlog.get_logger()


async def serve(stage: Stage, control: int) -> int:
    """Serve until the supervisor, at the other end of `control`, says stop."""
    member = Member(socket.socket(fileno=control))
    begin, (requests,) = await member.begun
    settings = Settings.model_validate(begin.values)
    logs.configure(settings.log_format, settings.log_level)
    remote = engine_for(member, settings, requests)
    with collector.settled(), contextlib.closing(remote):
        serving = serving_of(settings, remote, remote, stage.admin)
        stage.open(serving.app)
        addresses = await stage.listening()
        log.info("the server listens", address=addresses[0])
        member.say(Up({"grpc": addresses[0], "http": addresses[-1]}))
        async with beating(member, settings.predict_timeout):
            await first(stage.told, member.told_to_stop)
            if member.told_to_stop.is_set():
                # Else Envoy ends by itself. The engine must not be drained for that:
                # the supervisor puts another Envoy in its place.
                await serving.stop()
    return 0
