"""The certificates of tiers that are reached over TLS: whether a host's files can be served, and what is served there.

A certificate is trusted here because it is the one in the file, whoever has signed it, and for whatever name.
"""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import suppress
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path

_TIMEOUT_S = 10
_CHUNK = 16384
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL's x509_vfy.h.
_NOT_YET, _EXPIRED = 9, 10


class Fault(str, Enum):
    """What is wrong with a certificate, or with what is served: it is not of now, another one, or there is none.

    UNREADABLE is a file, of which a copy may be served.
    """

    UNREADABLE = "unreadable"
    NOT_OF_NOW = "not of now"
    OTHER = "other"
    NONE = "none"


class TlsError(Exception):
    """Files that cannot be served, or a server that does not serve them; the message says why."""

    def __init__(self, fault: Fault, said: str) -> None:
        super().__init__(said)
        self.fault = fault


def check(certificate: Path, key: Path) -> datetime:
    """Return until when a certificate is valid that can be served with its key; TlsError says why it cannot."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for path in (certificate, key):
        _read(path)
    try:
        server.load_cert_chain(certificate, key, password=lambda: _refuse_password(key))
    except ssl.SSLError as error:
        raise TlsError(
            Fault.NONE,
            f"{certificate} and {key} are no certificate and its private key ({error.reason or 'no PEM'})",
        ) from error
    return _played(server, _own(certificate), certificate)


def served(address: str, port: int, certificate: Path) -> datetime:
    """Return until when the certificate of a file is valid that is served at an address; TlsError when it is not.

    The handshake is left before its end, with which a tier on demand would be loaded.
    """
    own = _own(certificate)
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client = _trusting(own).wrap_bio(received, to_send)
        with socket.create_connection((address, port), timeout=_TIMEOUT_S) as connection:
            while True:
                with suppress(ssl.SSLWantReadError):
                    client.do_handshake()
                    # What now is to be sent would be the end.
                    return _valid_until(client, own)
                connection.sendall(to_send.read())
                if not received.write(connection.recv(_CHUNK)):
                    received.write_eof()
    except ssl.SSLCertVerificationError as error:
        raise _refused(error, certificate) from error
    except OSError as error:
        raise TlsError(Fault.NONE, str(error)) from error


def _read(path: Path) -> str:
    try:
        # What stands before a PEM block may be in any encoding.
        return path.read_text(encoding="latin-1")
    except OSError as error:
        raise TlsError(Fault.UNREADABLE, f"{path} cannot be read ({error.strerror})") from error


def _refuse_password(key: Path) -> str:
    raise TlsError(Fault.NONE, f"{key} has a password, for which nobody is there when the host boots")


def _own(certificate: Path) -> str:
    """Return the first certificate of a file, which is the server's own: its chain follows it."""
    found = _PEM.search(_read(certificate))
    if found is None or not found.group().isascii():
        raise TlsError(Fault.UNREADABLE, f"{certificate} has no certificate in PEM")
    return found.group()


def _trusting(own: str) -> ssl.SSLContext:
    """Return a client that trusts one certificate, and what it has signed."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # A client has seen the certificate, and verified it, before its own last word.
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cadata=own)
    return client


def _played(server: ssl.SSLContext, own: str, certificate: Path) -> datetime:
    """Return until when a certificate is valid, which OpenSSL tells of a peer's alone: so both sides are played."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = _trusting(own).wrap_bio(back, there, server_side=False)
    try:
        # Hello, the server's answer with its certificate, the client's end.
        for side in (client, server.wrap_bio(there, back, server_side=True), client):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise _refused(error, certificate) from error
    except ssl.SSLError as error:
        raise TlsError(Fault.NONE, f"{certificate} cannot be served ({error.reason})") from error
    return _valid_until(client, own)


def _valid_until(client: ssl.SSLSocket | ssl.SSLObject, own: str) -> datetime:
    if client.getpeercert(binary_form=True) != ssl.PEM_cert_to_DER_cert(own):
        raise TlsError(Fault.OTHER, "one that it has signed")
    told = client.getpeercert()
    # Of a certificate that was verified.
    assert told
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(told["notAfter"])), timezone.utc)


def _refused(error: ssl.SSLCertVerificationError, certificate: Path) -> TlsError:
    if error.verify_code in (_NOT_YET, _EXPIRED):
        return TlsError(Fault.NOT_OF_NOW, f"{certificate}: {error.verify_message}")
    return TlsError(Fault.OTHER, error.verify_message)
