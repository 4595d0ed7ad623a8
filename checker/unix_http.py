"""HTTP over a unix socket for `requests`, which knows TCP alone."""

from __future__ import annotations

import socket
from typing import Any

from requests.adapters import HTTPAdapter
from requests.models import PreparedRequest
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection


class UnixAdapter(HTTPAdapter):
    """Sends every request of the URLs that it is mounted for to one unix socket, whatever host they name."""

    def __init__(self, path: str) -> None:
        self._pool = _Pool(path)
        super().__init__()

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        """Return the socket's connections."""
        return self._pool

    def request_url(self, request: PreparedRequest, proxies: Any) -> str:
        """Return the path of a request; there is no proxy to it."""
        return request.path_url


class _Connection(HTTPConnection):
    def __init__(self, path: str, **options: Any) -> None:
        super().__init__("localhost", **options)
        self._path = path

    def _new_conn(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        if isinstance(self.timeout, int | float):
            connection.settimeout(self.timeout)
        connection.connect(self._path)
        return connection


class _Pool(HTTPConnectionPool):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def _new_conn(self) -> _Connection:
        return _Connection(self._path, timeout=self.timeout.connect_timeout)
