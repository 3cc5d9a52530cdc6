"""A front end's process: gRPC and HTTP over an engine that is elsewhere.

Owns: its servers, on the ports that all front ends share. Must not: hold anything that
a caller would miss when it dies, but the caller's connection.
"""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from importlib.metadata import version

from runtime import compose
from runtime.asgi.vigil import Vigil
from runtime.config import Settings
from runtime.link.memory import Region
from runtime.link.remote import RemoteEngine
from runtime.rest import answering, application
from runtime.rest_pages import ServerInfo
from runtime.tree.control import Begin, Meet, Unlinked, Up
from runtime.tree.member import Member, beating


def engine_for(member: Member, settings: Settings, requests: int) -> RemoteEngine:
    """The engine that whoever watches over us introduces us to, and each that follows.
    `requests`: the descriptor of our requests' memory. For any front end."""
    remote = RemoteEngine(Region(requests), settings.patience, settings.max_waiting)
    life = 0

    async def meet(message: Meet, fds: Sequence[int]) -> None:
        nonlocal life
        end, answers = fds
        # Only then is it this life's link that may be lost: the last one may not have
        # been missed yet, and its loss must not be taken for this one's.
        await remote.meet(socket.socket(fileno=end), Region(answers))
        life = message.life

    meetings: set[asyncio.Task[None]] = set()

    def met(message: Meet, fds: Sequence[int]) -> None:
        task = asyncio.ensure_future(meet(message, fds))
        meetings.add(task)
        task.add_done_callback(meetings.discard)

    remote.when_lost(lambda: member.say(Unlinked(life)))
    member.on_meet = met
    return remote


async def run(
    member: Member, begin: Begin, settings: Settings, fds: Sequence[int]
) -> None:
    """Serve until told to stop."""
    requests, listening = fds
    remote = engine_for(member, settings, requests)
    info = ServerInfo(settings.server_name, version("hotset"))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(remote.close)
        vigil = Vigil()
        app = application(remote, remote, info, settings.max_message, vigil)
        await stack.enter_async_context(answering(app, socket.socket(fileno=listening)))
        # Left last: one that drains is not hung.
        await stack.enter_async_context(beating(member, settings.predict_timeout))
        await stack.enter_async_context(
            await compose.grpc_of(remote, settings, app, vigil, reuse_port=True)
        )
        member.say(Up())
        await member.told_to_stop.wait()
