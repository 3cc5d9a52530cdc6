"""The object store: a URL, and what may be read below it.

Owns: the connection (obstore), the paths, the translation of faults into our errors.
Must not: know what the files mean, cache anything, or list more than it is asked for.

Credentials come from the environment, under the names that KServe's secrets use as
well as the platforms' own; they never appear in an error or a repr.
"""

import asyncio
import os
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore import exceptions as faults
from obstore.store import LocalStore, MemoryStore, S3Store, from_url

from loader.errors import StoreDenied, StoreUnreachable
from loader.folder import Folder
from loader.hosts import NOWHERE, fence
from loader.part import PIECE
from loader.part import Changed as Changed
from loader.part import Missing as Missing
from loader.part import Part as Part
from loader.store_options import client_options, s3_config, tls, unsigned
from loader.tap import Tap

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult
    from obstore.store import ObjectStore, RetryConfig

SCHEMES = ("file", "memory", "s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl")
"""No http(s): a store must list versions, and a URL to any host would be an SSRF."""

MAX_SMALL_FILE = 8 << 20
"""Bytes of a manifest or graph at most; a graph of 1.7 k nodes has 0.4 MB."""

RETRIES: "RetryConfig" = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {
        "init_backoff": timedelta(milliseconds=50),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    },
}
"""obstore's own default retries for three minutes; a request waits for us meanwhile."""

SIGNED_FOR = timedelta(minutes=5)
"""A clock may be wrong by some minutes; nobody else gets to see what is signed."""

PATIENCE = 20.0
"""Seconds for a small object or a listing, retries included. A store that sends a byte
now and then never runs into the time limit of a read."""

DENIALS = (faults.PermissionDeniedError, faults.UnauthenticatedError, PermissionError)
DENIED_LISTING = re.compile(r"status code: 40[13]\b")
"""obstore says of a listing that was refused no more than this, in its text."""


class Store:
    """Objects below one URL. Every method may raise StoreUnreachable or StoreDenied."""

    def __init__(
        self, backend: "ObjectStore", scheme: str, folder: Folder | None = None
    ) -> None:
        self._backend = backend
        self.scheme = scheme
        self._folder = folder
        self._tls: ssl.SSLContext | None = None
        self.url = ""
        """Where another process finds the same store, by `open`; empty: it cannot. May
        hold a password: not to be shown."""

    @classmethod
    def open(cls, url: str, environ: Mapping[str, str] = os.environ) -> "Store":
        """A store for `url`: a local folder, file://, s3://, gs://, az:// or memory://.

        Raises ValueError, saying what to do, for a URL that is none of these.
        """
        store = cls._opened(url, environ)
        if store._folder is not None:
            # As it was found now: a link may lead elsewhere later.
            store.url = str(store._folder.root)
        elif environ is os.environ and store.scheme != "memory":
            store.url = url
        return store

    @classmethod
    def _opened(cls, url: str, environ: Mapping[str, str]) -> "Store":
        if "://" not in url:
            root = Path(url).expanduser()
            if not root.is_dir():
                # Not repeated: a mistyped s3:/ URL may have a password in it.
                raise ValueError("--store: there is no such folder")
            return cls(LocalStore(root), "file", Folder(root.resolve()))
        scheme = urlsplit(url).scheme.lower()
        if scheme not in SCHEMES:
            raise ValueError(
                f"--store: '{scheme}://' is not a kind of store hotset reads; use a "
                f"folder or one of {', '.join(s + '://' for s in SCHEMES[:5])}"
            )
        if scheme == "memory":
            return cls(MemoryStore(), scheme)
        if scheme == "file":
            return cls._opened(urlsplit(url).path, environ)
        config = s3_config(environ) if scheme in ("s3", "s3a") else {}
        options = client_options(environ)
        options.update(fence(scheme, environ))
        try:
            backend = from_url(
                url,
                config=config or None,  # type: ignore[arg-type]
                client_options=options,
                retry_config=RETRIES,
            )
        except (faults.BaseError, ValueError) as error:
            raise ValueError(
                f"--store: this {scheme}:// URL and its environment do not make a store"
            ) from error
        store = cls(backend, scheme)
        # Where that is not so the way out is the operator's.
        ours = options.get("proxy_url") == NOWHERE and not unsigned(environ)
        if ours and isinstance(backend, S3Store):
            store._tls = tls(environ)
        return store

    def tap(self) -> Tap | None:
        """Another way to its bytes (loader/tap.py), if there is one; to be closed."""
        backend = self._backend
        if self._tls is None or not isinstance(backend, S3Store):
            return None

        async def sign(path: str) -> str:
            return await obstore.sign_async(backend, "GET", path, SIGNED_FOR)

        return Tap(sign, self._tls)

    async def small(self, path: str, limit: int = MAX_SMALL_FILE) -> bytes:
        """A whole small object. Raises Missing; ValueError if larger than `limit`."""
        with translated():
            async with asyncio.timeout(PATIENCE):
                return await self._small(path, limit)

    async def _small(self, path: str, limit: int) -> bytes:
        if self._folder is not None:
            return await self._folder.small(path, limit)
        result = await obstore.get_async(self._backend, path)
        size = result.meta["size"]
        if size > limit:
            raise ValueError(f"has {size} bytes, limit {limit}")
        async with aclosing(_pieces(result, size)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def part(
        self, path: str, start: int, end: int, etag: str | None = None
    ) -> Part:
        """Bytes `[start, end)`; Changed if `etag` is given and is no longer true."""
        options: GetOptions = {"range": (start, end)}
        if etag is not None:
            options["if_match"] = etag
        with translated():
            if self._folder is not None:
                return await self._folder.part(path, start, end, etag)
            result = await obstore.get_async(self._backend, path, options=options)
            meta = result.meta
        return Part(_pieces(result, end - start), meta["size"], meta["e_tag"])

    def local(self, path: str) -> Path | None:
        """The object as a file that can be opened, where the store is a folder.
        Missing if it is not a plain file of that folder."""
        return None if self._folder is None else self._folder.find(path)

    async def put(self, path: str, data: bytes) -> None:
        """Write an object (packing and the demo; the server never writes)."""
        with translated():
            await obstore.put_async(self._backend, path, data)

    async def children(self, below: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the objects directly below `below`."""
        with translated():
            async with asyncio.timeout(PATIENCE):
                found = await obstore.list_with_delimiter_async(self._backend, below)
        folders = [prefix.rstrip("/").rsplit("/", 1)[-1]
                   for prefix in found["common_prefixes"]]  # fmt: skip
        objects = [meta["path"].rsplit("/", 1)[-1] for meta in found["objects"]]
        return folders, objects

    async def models(self, prefix: str = "") -> AsyncIterator[str]:
        """Names of the models, in the store's order, as they are found."""
        last = ""
        with translated():
            async for batch in obstore.list(self._backend, chunk_size=1000):
                for meta in batch:
                    name = meta["path"].split("/", 1)[0]
                    if name != last and name.startswith(prefix):
                        last = name
                        yield name

    def __repr__(self) -> str:
        return f"Store({self.scheme}://...)"


async def _pieces(result: "GetResult", limit: int) -> AsyncGenerator[memoryview, None]:
    """The body as it comes. A body has an end only if the store is honest."""
    with translated():
        async for piece in result.stream(min_chunk_size=PIECE):
            limit -= len(piece)
            if limit < 0:
                raise StoreUnreachable("the model store sent more than was asked for")
            yield memoryview(piece)


@contextmanager
def translated() -> Iterator[None]:
    """obstore's faults as ours; its texts (URLs, keys) stay in `__cause__`."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, faults.NotFoundError) as error:
        raise Missing from error
    except faults.PreconditionError as error:
        raise Changed from error
    except (faults.BaseError, OSError) as error:
        if isinstance(error, DENIALS) or DENIED_LISTING.search(str(error)):
            raise StoreDenied(
                "the model store refused the server's credentials"
            ) from error
        raise StoreUnreachable("the model store could not be read") from error
