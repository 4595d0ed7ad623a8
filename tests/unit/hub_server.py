"""A real HTTP server that plays the hub, the server it leads on to, a plain mirror, or one that misbehaves."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Served:
    """One file; `size` may promise more than `content`, the rest reads as zeros."""

    content: bytes
    size: int | None = None
    sha256: str | None = None  # the hub knows it: X-Linked-Etag and X-Linked-Size
    etag: str | None = None
    location: str | None = None  # leads on to there
    status: int | None = None  # answers that in place of the file
    head_status: int | None = None
    content_type: str = "application/octet-stream"
    ranges: bool = True
    content_range: str | None = None  # says that in place of the truth
    grows: int = 0  # bytes that it has more after each range
    token: str | None = None  # who does not send it is refused
    cuts: list[int] = field(default_factory=list)  # bytes after which the next answers are cut

    @property
    def length(self) -> int:
        return len(self.content) if self.size is None else self.size

    def bytes(self, start: int, end: int) -> bytes:
        piece = self.content[start:end]
        return piece + b"\x00" * (end - start - len(piece))


@dataclass(frozen=True)
class Asked:
    method: str
    host: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class HubServer:
    """`files` by path; `asked` has every request, `sent` the bytes of bodies that were written."""

    port: int
    files: dict[str, Served] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    sent: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def other_host(self) -> str:
        """Return the same server under another name, as the hub's storage has another host."""
        return f"http://localhost:{self.port}"

    def methods(self) -> list[str]:
        return [request.method for request in self.asked]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    played: HubServer

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, body: bool) -> None:
        headers = self.headers
        path = urlsplit(self.path).path
        self.played.asked.append(
            Asked(self.command, headers["Host"].split(":")[0], self.path, headers["Range"], headers["Authorization"])
        )
        file = self.played.files.get(path)
        if file is None:
            return self._answer(404, b"Entry not found", {}, body)
        facts = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.length)} if file.sha256 else {}
        if file.token and headers["Authorization"] != f"Bearer {file.token}":
            return self._answer(401, b"Invalid username or password.", {}, body)
        status = file.status if body or file.head_status is None else file.head_status
        if status:
            return self._answer(status, b"no", {}, body)
        if file.location:
            return self._answer(302, b"", facts | {"Location": file.location}, body)
        facts |= {"ETag": file.etag} if file.etag else {}
        facts |= {"Content-Type": file.content_type}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", headers["Range"] or "")
        if not asked or not file.ranges:
            return self._answer(200, file.content, facts | {"Content-Length": str(file.length)}, body, file)
        start, end = int(asked[1]), min(int(asked[2]) + 1, file.length)
        if start >= file.length:
            return self._answer(416, b"", {"Content-Range": f"bytes */{file.length}"}, body)
        file.size = file.length + file.grows
        told = file.content_range or f"bytes {start}-{end - 1}/{file.length}"
        return self._answer(206, file.bytes(start, end), facts | {"Content-Range": told}, body, file)

    def _answer(
        self, status: int, content: bytes, headers: dict[str, str], body: bool, file: Served | None = None
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        if file and file.cuts:
            content = content[: file.cuts.pop(0)]
            self.close_connection = True
        with suppress(ConnectionError):
            for start in range(0, len(content), 65536):
                self.wfile.write(content[start : start + 65536])
                self.played.sent += len(content[start : start + 65536])

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that has seen enough closes the connection."""


@contextmanager
def serving() -> Iterator[HubServer]:
    """Serve while the context lasts; files may be changed between requests."""
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    handler.played = HubServer(server.server_address[1])  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield handler.played  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
