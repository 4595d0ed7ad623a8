"""A real HTTP server of one file, on loopback, that can misbehave as hubs, mirrors and proxies do."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """What is served and how; `asked` has the Range header of every request (None: it had none), in order."""

    content: bytes
    content_type: str = "application/octet-stream"
    statuses: list[int] = field(default_factory=list)  # of the next answers, before the file is served
    cuts: list[int] = field(default_factory=list)  # bytes after which the next answers are cut
    ranges: bool = True
    tells_length: bool = True
    asked: list[str | None] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    played: FileServer

    def do_GET(self) -> None:
        played = self.played
        asked = self.headers["Range"]
        played.asked.append(asked)
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        start = int(match[1]) if match and played.ranges else None
        if played.statuses:
            self._answer(played.statuses.pop(0), b"no", {})
        elif start is not None and start >= len(played.content):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(played.content)}"})
        elif start is not None:
            last, size = len(played.content) - 1, len(played.content)
            self._answer(206, played.content[start:], {"Content-Range": f"bytes {start}-{last}/{size}"})
        else:
            self._answer(200, played.content, {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", self.played.content_type)
        if self.played.tells_length:
            self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if status < 300 and self.played.cuts:
            body = body[: self.played.cuts.pop(0)]
        self.played.sent.append(len(body))
        with suppress(ConnectionError):  # the client has seen enough
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(content: bytes) -> Iterator[FileServer]:
    """Serve while the context lasts; fields may be changed between requests."""
    played = FileServer(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"played": played}))
    played.url = f"http://127.0.0.1:{server.server_address[1]}/models/model.gguf"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield played
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
