"""HTTP over a unix socket, which the standard library's client lacks."""

from __future__ import annotations

import socket
from http.client import HTTPConnection


class UnixConnection(HTTPConnection):
    """A connection to one unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        """Take the path of the socket, and the seconds that connecting may take, and every wait after it."""
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket; OSError."""
        self.sock = socket.socket(socket.AF_UNIX)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._path)
        except OSError:
            self.close()
            raise
