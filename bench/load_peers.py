"""Everybody who loads in `bench.load`, behind one call: a file in, tensors out.

Owns: how each library is called, at its defaults. Must not: measure, or let a library
be lazy: after a call every byte is in memory that the caller owns, never in an mmap or
in a ring that is used again.

References are no libraries. All of them write to memory that has been touched before:
`memcpy` copies the file's bytes from memory; `pread` reads them from the page cache,
and `pread + BLAKE3` hashes each half megabyte after it, in one thread: the least that
somebody costs who looks at the bytes; `single stream` is one GET, read by http.client,
and the same with BLAKE3 after each megabyte.
Nobody but hotset verifies a digest.
"""

import asyncio
import contextlib
import http.client
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import obstore
import torch
from blake3 import blake3

from bench.load_models import TENSORIZED, WEIGHTS, spec_of
from bench.seaweed import BUCKET
from eviction.costs import Costs
from eviction.ledger import Ledger
from loader.load import Loader, Model
from loader.manifest import ModelSpec
from loader.store import Store
from runtime.commands.serve import loop_factory
from runtime.loading import loading
from runtime.sources import load as load_settings

Tensors = Mapping[str, torch.Tensor]
CPU = torch.device("cpu")
CAPACITY = 4 << 30
HOTSET, MEMCPY, SINGLE = "hotset", "memcpy", "single stream"
PREAD, HASHED = "pread", "pread + BLAKE3"
CHECKED = "single stream + BLAKE3"
REFERENCES = (MEMCPY, PREAD, HASHED, SINGLE, CHECKED)
STEP = 512 << 10
"""Bytes that are hashed while they are still in the core's own cache."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model on disk, and what it is called in the bucket; `store` is a folder, s3."""

    directory: Path
    store: str

    @property
    def key(self) -> str:
        """Of the weights, in the bucket."""
        return f"{self.directory.parent.name}/{self.directory.name}/{WEIGHTS}"

    @property
    def local(self) -> str:
        """The weights as a file."""
        return str(self.directory / WEIGHTS)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return (self.directory / WEIGHTS).stat().st_size


Load = Callable[[Target], Tensors]
"""Returns when every byte is there. A reference gives no tensors."""


class Hotset:
    """hotset's loader as the server has it after some loads: on an event loop of its
    own, with a porter where there may be one. `pid`: of that. `tier`: of the last load.
    """

    phases: Mapping[str, float]

    def __init__(
        self, store: str, device: torch.device = CPU, host_cache: int = 0
    ) -> None:
        self._loop = (loop_factory() or asyncio.new_event_loop)()
        self._stack = contextlib.AsyncExitStack()
        self._specs: dict[Path, ModelSpec] = {}
        self._held: Model | None = None
        self.phases, self.tier, self.seconds = {}, "", 0.0
        begun = self._begin(store, device, host_cache)
        self._loader = self._loop.run_until_complete(begun)
        self.pid = self._loader.tiers().porter

    async def _begin(self, store: str, device: torch.device, host_cache: int) -> Loader:
        apart = device.type == "cpu"  # a porter cannot write to a GPU
        flags = {
            "store": store,
            "device": str(device),
            "loader": "process" if apart else "threads",
            "host_cache": str(host_cache),
        }
        settings = load_settings(flags, None, {})
        made = loading(settings, Store.open(store), device, Ledger(CAPACITY), Costs())
        loader = (await self._stack.enter_async_context(made)).loader
        while apart and not loader.tiers().porter:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        return loader

    def __call__(self, target: Target) -> Tensors:
        """Load it; the bytes stay until `release`."""
        return self._loop.run_until_complete(self._load(target))

    def release(self) -> None:
        """Unload what was loaded last."""
        if self._held is not None:
            self._loop.run_until_complete(self._loader.unload(self._held))
            self._held = None

    async def _load(self, target: Target) -> Tensors:
        spec = self._specs.get(target.directory)
        if spec is None:  # the catalog knows it before anybody waits for a load
            folder = f"{target.directory.parent.name}/{target.directory.name}"
            spec = replace(spec_of(target.directory), directory=folder)
            self._specs[target.directory] = spec
        began = time.perf_counter()
        model = await self._loader.load(spec)
        self.seconds = time.perf_counter() - began
        self.phases, self.tier = model.phases, model.tier
        names = (weight.name for weight in model.graph.weights)
        self._held = model
        return dict(zip(names, model.weights, strict=True))


class Pool:
    """Memory that was touched before, as large as was ever asked for."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, dtype=np.uint8)

    def take(self, nbytes: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        """The first bytes of it."""
        if len(self._bytes) < nbytes:
            self._bytes = np.zeros(nbytes, dtype=np.uint8)
            self._bytes[:] = 1
        return self._bytes[:nbytes]


def local_loaders(folder: str) -> dict[str, Callable[[], Load]]:
    """From the page cache. Each is made when it is first needed."""
    return {
        HOTSET: lambda: Hotset(folder),
        MEMCPY: _memcpy,
        PREAD: lambda: _pread(hashed=False),
        HASHED: lambda: _pread(hashed=True),
        "safetensors mmap + copy": lambda: _safetensors("mmap"),
        "safetensors pread": lambda: _safetensors("pread"),
        "fastsafetensors": _fastsafetensors,
        "Run:ai model streamer": lambda: _runai(lambda target: target.local),
        "tensorizer": lambda: _tensorizer(
            lambda target: str(target.directory / TENSORIZED)
        ),
    }


def s3_loaders(store: str) -> dict[str, Callable[[], Load]]:
    """From S3, as AWS_ENDPOINT_URL and its kin say."""
    return {
        HOTSET: lambda: Hotset(store),
        SINGLE: lambda: _single_stream(store, hashed=False),
        CHECKED: lambda: _single_stream(store, hashed=True),
        "Run:ai model streamer": lambda: _runai(
            lambda target: f"s3://{BUCKET}/{target.key}"
        ),
        "tensorizer": _tensorizer_s3,
        "boto3 + safetensors": _boto3,
    }


def _memcpy() -> Load:
    pool = Pool()
    sources: dict[str, np.ndarray[tuple[int], np.dtype[np.uint8]]] = {}

    def load(target: Target) -> Tensors:
        if target.local not in sources:
            sources.clear()
            sources[target.local] = np.fromfile(target.local, dtype=np.uint8)
        source = sources[target.local]
        np.copyto(pool.take(len(source)), source)
        return {}

    return load


def _pread(hashed: bool) -> Load:
    pool = Pool()

    def load(target: Target) -> Tensors:
        view, digest = pool.take(target.nbytes).data, blake3()
        with open(target.local, "rb", buffering=0) as file:
            for at in range(0, len(view), STEP):
                step = view[at : at + STEP]
                file.readinto(step)
                if hashed:
                    digest.update(step)
        digest.digest()
        return {}

    return load


def _safetensors(backend: str) -> Load:
    from safetensors.torch import load_file

    def load(target: Target) -> Tensors:
        tensors = load_file(target.local, backend=backend)
        if backend == "mmap":  # so far nothing has been read
            return {name: tensor.clone() for name, tensor in tensors.items()}
        return dict(tensors)

    return load


def _fastsafetensors() -> Load:
    from fastsafetensors import SafeTensorsFileLoader

    def load(target: Target) -> Tensors:
        loader = SafeTensorsFileLoader(None, device="cpu", nogds=True)
        try:
            loader.add_filenames({0: [target.local]})
            buffers = loader.copy_files_to_device()
            # Tensors must die before the buffers do, so an owner copies.
            keys = list(loader.get_keys())
            tensors = {key: buffers.get_tensor(key).clone() for key in keys}
            buffers.close()
            return tensors
        finally:
            loader.close()

    return load


def _runai(path_of: Callable[[Target], str]) -> Load:
    from runai_model_streamer import SafetensorsStreamer

    def load(target: Target) -> Tensors:
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(path_of(target))
            # It yields views into a buffer of its own that it uses again.
            return {name: tensor.clone() for name, tensor in streamer.get_tensors()}

    return load


def _tensorizer(path_of: Callable[[Target], str]) -> Load:
    from tensorizer import TensorDeserializer

    def load(target: Target) -> Tensors:
        with TensorDeserializer(path_of(target), device="cpu") as tensors:
            return dict(tensors.items())

    return load


def _tensorizer_s3() -> Load:
    from tensorizer import TensorDeserializer, stream_io

    def load(target: Target) -> Tensors:
        key = target.key.removesuffix(WEIGHTS) + TENSORIZED
        stream = stream_io.open_stream(
            f"s3://{BUCKET}/{key}",
            "rb",
            s3_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            s3_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            s3_endpoint=os.environ["AWS_ENDPOINT_URL"],
            force_http=True,
        )
        with TensorDeserializer(stream, device="cpu") as tensors:
            return dict(tensors.items())

    return load


def _boto3() -> Load:
    import boto3
    from safetensors.torch import load as parse

    client = boto3.client("s3")

    def load(target: Target) -> Tensors:
        answer = client.get_object(Bucket=BUCKET, Key=target.key)
        return dict(parse(answer["Body"].read()))

    return load


def _single_stream(store: str, hashed: bool) -> Load:
    signer = obstore.store.from_url(store, client_options={"allow_http": True})
    assert isinstance(signer, obstore.store.S3Store)
    pool = Pool()
    address = urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc
    connection = http.client.HTTPConnection(address, timeout=60)

    def load(target: Target) -> Tensors:
        signed = urlsplit(obstore.sign(signer, "GET", target.key, timedelta(minutes=5)))
        connection.request("GET", f"{signed.path}?{signed.query}")
        answer = connection.getresponse()
        view, digest = pool.take(target.nbytes).data, blake3()
        at = 0
        while count := answer.readinto(view[at : at + (1 << 20)]):
            if hashed:
                digest.update(view[at : at + count])
            at += count
        digest.digest()
        if answer.status != http.client.OK or at != target.nbytes:
            raise ConnectionError(f"status {answer.status}, {at} bytes")
        answer.close()
        return {}

    return load
