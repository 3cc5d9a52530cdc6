"""Asking a running server over HTTP, as top, ls and explain do.

Owns: the request and what can go wrong with it. Must not: know what is done with the
answer.
"""

import http.client
from urllib.parse import urlsplit

from runtime.commands import Failed
from runtime.report import NotAReport, Report, decode

DEFAULT_URL = "http://127.0.0.1:8080"
PATIENCE_S = 5.0
LARGEST_REPORT = 64 << 20
"""Bytes. A report of 100,000 residents has some 20 MB."""


def ask(url: str) -> Report:
    """The report of the server at `url` (http://host:port); raises Failed."""
    status, body = fetch(url, "/hotset/status")
    if status != http.HTTPStatus.OK:
        raise Failed(f"{url} answers {status}: is it hotset?")
    try:
        return decode(body)
    except NotAReport as error:
        raise Failed(f"{url} does not answer like hotset: {error}") from None


def fetch(url: str, path: str) -> tuple[int, bytes]:
    """GET `path` of the server at `url`: the status and the body; raises Failed."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("http", "https") or not host:
        raise Failed(f"--url {url}: write it like {DEFAULT_URL}")
    kind = (
        http.client.HTTPSConnection
        if parts.scheme == "https"
        else http.client.HTTPConnection
    )
    connection = kind(host, port, timeout=PATIENCE_S)
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        answer = connection.getresponse()
        return answer.status, answer.read(LARGEST_REPORT)
    except http.client.HTTPException:
        raise Failed(f"{url} does not speak HTTP: is it the gRPC port?") from None
    except OSError as error:
        raise Failed(f"no answer from {url}: {error.strerror or error}") from None
    finally:
        connection.close()
