"""Real object stores for tests: SeaweedFS (S3) and azurite (Azure), once a test run.

Owns: the fixtures, and the models' way into a store. Must not: need a network; what is
not installed skips its tests with the command that would install it.
"""

import base64
import contextlib
import hashlib
import hmac
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from pathlib import Path

import pytest

from bench.seaweed import Seaweed, Unavailable, free_ports, seaweed
from loader.store import Store

AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6"
    "IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""Azurite's own, known to everybody; it opens nothing else."""


@pytest.fixture(scope="session")
def seaweed_server() -> Iterator[Seaweed]:
    """A SeaweedFS for the whole run."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(seaweed())
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield server


@pytest.fixture
def s3(seaweed_server: Seaweed, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty prefix, and an environment that opens it."""
    for name, value in seaweed_server.environ().items():
        monkeypatch.setenv(name, value)
    return f"{seaweed_server.url}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def azurite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an azurite for the whole run, with a container `models`."""
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH')}"
    azurite = shutil.which("azurite-blob", path=beside)
    if azurite is None or shutil.which("node", path=beside) is None:
        pytest.skip("azurite is not here: npm install -g azurite@3.37.0")
    with free_ports(1) as ports:
        url = f"http://127.0.0.1:{ports[0]}"
    folder = tmp_path_factory.mktemp("azurite")
    command = [azurite, "--blobPort", str(ports[0]), "--location", str(folder),
               "--silent", "--disableTelemetry", "--skipApiVersionCheck"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        make_container(process, url, "models")
        yield url
    finally:
        process.kill()  # on SIGTERM it waits for connections that clients keep
        process.wait()


@pytest.fixture
def azure(azurite_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty prefix in azurite, and an environment that opens it."""
    environ = {
        "AZURITE_BLOB_STORAGE_URL": azurite_server,
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "AZURE_STORAGE_ACCOUNT_NAME": AZURITE_ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": AZURITE_KEY,
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return f"az://models/{uuid.uuid4().hex}"


def make_container(
    process: "subprocess.Popen[bytes]", url: str, name: str, patience: float = 30
) -> None:
    """PUT a container as soon as azurite listens, signed by hand (no SDK needed)."""
    deadline = time.monotonic() + patience
    while True:
        if process.poll() is not None:
            pytest.skip(f"azurite ended at once with status {process.returncode}")
        try:
            urllib.request.urlopen(container_request(url, name), timeout=5).close()
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() > deadline:
                pytest.skip(f"azurite was not ready within {patience:g} s")
            time.sleep(0.05)
        else:
            return


def container_request(url: str, name: str) -> urllib.request.Request:
    """Shared Key: the verb, eleven headers we do not send, the date, the resource."""
    date, version = formatdate(usegmt=True), "2021-08-06"
    path = f"/{AZURITE_ACCOUNT}/{name}"
    text = (
        "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n"
        f"/{AZURITE_ACCOUNT}{path}\nrestype:container"
    )
    key = base64.b64decode(AZURITE_KEY)
    digest = hmac.new(key, text.encode(), hashlib.sha256).digest()
    signature = base64.b64encode(digest).decode()
    return urllib.request.Request(
        f"{url}{path}?restype=container",
        method="PUT",
        headers={
            "x-ms-date": date,
            "x-ms-version": version,
            "Content-Length": "0",
            "Authorization": f"SharedKey {AZURITE_ACCOUNT}:{signature}",
        },
    )


async def upload(url: str, folder: str, made: Mapping[str, bytes]) -> None:
    """A model's files into `url`/`folder`, model.json last."""
    store = Store.open(url)
    for name in sorted(made, key=lambda name: name == "model.json"):
        await store.put(f"{folder}/{name}", made[name])
