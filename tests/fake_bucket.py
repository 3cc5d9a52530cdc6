"""An S3 endpoint in this process: enough of the protocol to put, get and list.

Path-style (`/bucket/key`), unsigned as far as it is concerned, everything in a dict.
"""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "models"


class FakeBucket:
    """The objects by key, and how often each verb was used."""

    def __init__(self):
        self.objects = {}
        self.verbs = {"PUT": 0, "GET": 0, "LIST": 0}
        self.url = ""

    @property
    def environ(self):
        """What a client needs to come here."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "something",
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def fake_bucket():
    """A bucket called `models` on a port of its own."""
    bucket = FakeBucket()

    class Endpoint(_Endpoint):
        held = bucket

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.daemon_threads = True
    bucket.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Endpoint(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held: FakeBucket

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.held.verbs["PUT"] += 1
        self.held.objects[self._key()] = data
        self._answer(200, b"", {"ETag": _etag(data)})

    def do_GET(self):
        key = self._key()
        if not key:
            self._list()
            return
        self.held.verbs["GET"] += 1
        data = self.held.objects.get(key)
        if data is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", {})
            return
        headers = {"ETag": _etag(data), "Last-Modified": _LONG_AGO}
        if self.headers.get("If-Match", _etag(data)) != _etag(data):
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>", {})
            return
        wanted = self.headers.get("Range")
        if wanted is None:
            self._answer(200, data, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self._answer(206, data[start : end + 1], headers)

    def _list(self):
        self.held.verbs["LIST"] += 1
        query = parse_qs(urlsplit(self.path).query)
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        folders, entries = set(), []
        for key, data in sorted(self.held.objects.items()):
            if not key.startswith(prefix):
                continue
            head, found, _ = key[len(prefix) :].partition(delimiter or "\0")
            if found:
                folders.add(prefix + head + delimiter)
                continue
            entries.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
                f"<LastModified>2026-01-01T00:00:00Z</LastModified>"
                f"<ETag>{escape(_etag(data))}</ETag></Contents>"
            )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>"
            for each in sorted(folders)
        )
        body = (
            "<ListBucketResult><IsTruncated>false</IsTruncated>"
            f"{''.join(entries)}{common}</ListBucketResult>"
        )
        self._answer(200, body.encode(), {"Content-Type": "application/xml"})

    def _key(self):
        bucket, _, key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        assert bucket == BUCKET
        return key

    def _answer(self, status, body, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


_LONG_AGO = "Thu, 01 Jan 2026 00:00:00 GMT"


def _etag(data):
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
