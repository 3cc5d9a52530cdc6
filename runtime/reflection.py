"""grpc.reflection.v1alpha: which services are here, and what their messages are.

Owns: the answers, from protobuf's own descriptor pool. Must not: know a front end, or
more of our services than their names.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2 as pb

from runtime.call import Call
from runtime.status import Code

SERVICE = pb.DESCRIPTOR.services_by_name["ServerReflection"]

_Answer = Mapping[str, Any]
"""The one field of the response that answers."""


class Reflection:
    """ServerReflectionInfo, for grpcurl, k6 and their like."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = sorted({*services, SERVICE.full_name})
        self._pool = descriptor_pool.Default()
        self._kinds: Mapping[str, Callable[[Any], _Answer]] = {
            "list_services": self._list,
            "file_by_filename": self._by_name,
            "file_containing_symbol": self._by_symbol,
            "file_containing_extension": self._by_extension,
            "all_extension_numbers_of_type": self._extensions,
        }

    async def ServerReflectionInfo(
        self, requests: AsyncIterator[pb.ServerReflectionRequest], call: Call
    ) -> AsyncIterator[pb.ServerReflectionResponse]:
        async for request in requests:
            kind = request.WhichOneof("message_request") or ""
            answer = self._kinds.get(kind)
            try:
                if answer is None:
                    told = _error(Code.INVALID_ARGUMENT, "invalid request type")
                else:
                    told = answer(getattr(request, kind))
            except KeyError:
                told = _error(Code.NOT_FOUND, "not found")
            yield pb.ServerReflectionResponse(
                valid_host=request.host, original_request=request, **told
            )

    def _list(self, _: str) -> _Answer:
        services = [pb.ServiceResponse(name=name) for name in self._services]
        return {"list_services_response": pb.ListServiceResponse(service=services)}

    def _by_name(self, name: str) -> _Answer:
        return _files(self._pool.FindFileByName(name))

    def _by_symbol(self, symbol: str) -> _Answer:
        return _files(self._pool.FindFileContainingSymbol(symbol))

    def _by_extension(self, extension: pb.ExtensionRequest) -> _Answer:
        extended = self._pool.FindMessageTypeByName(extension.containing_type)
        found = self._pool.FindExtensionByNumber(extended, extension.extension_number)
        return _files(self._pool.FindFileContainingSymbol(found.full_name))

    def _extensions(self, name: str) -> _Answer:
        extended = self._pool.FindMessageTypeByName(name)
        numbers = sorted(
            found.number for found in self._pool.FindAllExtensions(extended)
        )
        response = pb.ExtensionNumberResponse(
            base_type_name=extended.full_name, extension_number=numbers
        )
        return {"all_extension_numbers_response": response}


def _files(file: FileDescriptor) -> _Answer:
    """The file and all that it needs, itself first."""
    found: dict[str, bytes] = {}
    todo = [file]
    while todo:
        one = todo.pop(0)
        if one.name not in found:
            proto = FileDescriptorProto()
            one.CopyToProto(proto)
            found[one.name] = proto.SerializeToString()
            todo += one.dependencies
    protos = list(found.values())
    return {
        "file_descriptor_response": pb.FileDescriptorResponse(
            file_descriptor_proto=protos
        )
    }


def _error(code: Code, text: str) -> _Answer:
    return {"error_response": pb.ErrorResponse(error_code=code, error_message=text)}
