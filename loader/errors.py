"""The closed family of things that go wrong between a store and a device.

    LoadFailed
    ├── ModelNotFound      no such model or version in the store
    ├── ArtifactRefused    the bytes are there and are not exactly right
    ├── StoreUnreachable   the store did not answer, or answered with a fault
    │   └── StoreDenied    the store refused our credentials
    ├── DeviceFull         the device had no room although the ledger said so
    └── DeviceLost         the device is gone for this process (sticky CUDA error)

Owns: the sentences. Each message is written for a client: it names the model and what
to do, and never holds a URL, a credential, a path of the host or another library's
text; those belong into `__cause__`, which only the log sees. Must not: know gRPC codes
(runtime/status.py) or retry anything.
"""

from typing import ClassVar


class LoadFailed(Exception):
    """A model did not become resident. `lasts`: seconds until asking again makes sense.

    `lasts` differs by kind: a refused artifact will not mend itself in a second, an
    overloaded store may. The cache remembers the failure for that long and answers
    from memory (no thundering herd at a broken model).
    """

    lasts: ClassVar[float] = 5.0
    transient: ClassVar[bool] = False
    """True if the same load may well succeed a moment later."""

    @property
    def message(self) -> str:
        """The client-safe sentence."""
        return str(self)


class ModelNotFound(LoadFailed):
    """No such model, or no such version of it, in the store."""

    lasts = 5.0

    def __init__(self, model: str, version: str = "") -> None:
        # Triton's texts: clients match on them (protocol facts, 1.2).
        if version:
            super().__init__(
                f"Request for unknown model: '{model}' version {version} is not found"
            )
        else:
            super().__init__(f"Request for unknown model: '{model}' is not found")
        self.model = model
        self.version = version


class ArtifactRefused(LoadFailed):
    """The artifact is not exactly right: digest, format, op, header, shape.

    `place` says where (`graph.json: node 17 'linear_3'`), `reason` says what is wrong.
    """

    lasts = 60.0

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


class StoreUnreachable(LoadFailed):
    """The store did not answer in time, or answered with a fault of its own."""

    lasts = 2.0
    transient = True


class StoreDenied(StoreUnreachable):
    """The store refused our credentials; only an operator can mend that."""

    lasts = 30.0


class DeviceFull(LoadFailed):
    """The device allocator had no room although the ledger did."""

    lasts = 1.0
    transient = True


class DeviceLost(LoadFailed):
    """A sticky device error: this process must be replaced (runtime/lanes.py)."""

    lasts = 60.0
