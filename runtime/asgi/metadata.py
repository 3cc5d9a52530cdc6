"""gRPC's headers and trailers: deadlines in, statuses out.

Owns: `grpc-timeout`, `grpc-message`, `grpc-status-details-bin`, and how large headers
may be. Must not: know messages or methods.
"""

import base64
import re
from collections.abc import Mapping
from urllib.parse import quote

from runtime.asgi.ended import Ended
from runtime.limits import ABSOLUTE_MAX_METADATA
from runtime.status import DETAILS_KEY, Code, Status

Headers = list[tuple[bytes, bytes]]

CONTENT_TYPE = (b"content-type", b"application/grpc")
ACCEPTED = (b"grpc-accept-encoding", b"identity,gzip,deflate")
OK: Headers = [(b"grpc-status", b"0")]

_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

# What a status text may hold as it is: printable ASCII without the percent sign.
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def timeout_of(value: bytes) -> float:
    """Seconds that a `grpc-timeout` allows."""
    found = _TIMEOUT.fullmatch(value)
    if found is None:
        raise Ended(Status(Code.INTERNAL, 400, "the grpc-timeout header is malformed"))
    return int(found[1]) * _SECONDS[found[2]]


def check_size(headers: Mapping[bytes, bytes]) -> None:
    """Refuse what grpc's core refuses: headers of more than 16 KiB.

    Envoy has a limit too, but it resets the stream, which tells nobody why."""
    size = len(b"".join(headers)) + len(b"".join(headers.values()))
    if size > ABSOLUTE_MAX_METADATA:
        text = (
            f"received metadata of {size} bytes, the limit is {ABSOLUTE_MAX_METADATA}"
        )
        raise Ended(Status(Code.RESOURCE_EXHAUSTED, 431, text))


def told(status: Status) -> Headers:
    """The trailers that tell a status; after no message at all they are the headers."""
    trailers = [
        (b"grpc-status", b"%d" % status.code),
        (b"grpc-message", quote(status.text, safe=_PLAIN).encode("ascii")),
    ]
    details = status.details
    if details is not None:
        encoded = base64.b64encode(details).rstrip(b"=")
        trailers.append((DETAILS_KEY.encode("ascii"), encoded))
    return trailers
