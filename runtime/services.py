"""Every gRPC service of a server, made once for whichever front end answers.

Owns: which services there are. Must not: know a front end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.internal import api_implementation
from grpc_health.v1 import health_pb2

from protos import open_inference_pb2
from runtime import reflection
from runtime.engine import Engine
from runtime.health import Health
from runtime.limits import Options
from runtime.methods import Service, answered_by
from runtime.repository import Repository
from runtime.service import OpenInference


@dataclass(frozen=True, slots=True)
class Services:
    """The services, and the one of them that must know when the end begins."""

    health: Health
    all: Sequence[Service]


def services_of(
    engine: Engine, options: Options, more: Sequence[Service] = ()
) -> Services:
    """The Open Inference Protocol, health, reflection if wanted, and `more`."""
    # The pure-Python parser recurses into a message (CVE-2025-4565); upb does not.
    assert api_implementation.Type() == "upb", "protobuf runs without upb"
    inference = answered_by(
        open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        OpenInference(
            engine,
            name=options.name,
            ready_means=options.ready_means,
            max_answer=options.max_message_bytes,
        ),
        Repository(engine),
    )
    health = Health(engine, [inference.name, *(service.name for service in more)])
    answered = [
        inference,
        *more,
        answered_by(health_pb2.DESCRIPTOR.services_by_name["Health"], health),
    ]
    if options.reflection:
        names = [service.name for service in answered]
        answered.append(answered_by(reflection.SERVICE, reflection.Reflection(names)))
    return Services(health, answered)
