"""RPCs as plain async functions, found by their descriptor.

Owns: the match between a service's .proto and the objects that answer it, so that no
front end keeps a list of its own. Must not: know a front end.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from runtime.call import Call

# Any: each function takes its own message type; the descriptor pairs them, not mypy.
Unary = Callable[[Any, Call], Awaitable[Message]]
Streaming = Callable[[Any, Call], AsyncIterator[Message]]


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC. `takes_stream`: the function gets an async iterator of messages;
    `gives_stream`: it is an async generator."""

    name: str
    request: type[Message]
    response: type[Message]
    function: Unary | Streaming
    takes_stream: bool
    gives_stream: bool


@dataclass(frozen=True, slots=True)
class Service:
    """A service's full name and its methods."""

    name: str
    methods: tuple[Method, ...]


def answered_by(descriptor: ServiceDescriptor, *owners: object) -> Service:
    """The service with each method bound to the owner that has it.

    A method that nobody has is a mistake of ours: better at start than in a call.
    """
    return Service(
        descriptor.full_name,
        tuple(_method(method, owners) for method in descriptor.methods),
    )


def _method(descriptor: MethodDescriptor, owners: tuple[object, ...]) -> Method:
    name = descriptor.name
    owner = next((owner for owner in owners if hasattr(owner, name)), None)
    assert owner is not None, f"nobody answers {descriptor.full_name}. This is a bug."
    return Method(
        name=name,
        request=GetMessageClass(descriptor.input_type),
        response=GetMessageClass(descriptor.output_type),
        function=getattr(owner, name),
        takes_stream=descriptor.client_streaming,
        gives_stream=descriptor.server_streaming,
    )
