"""Certificates with their keys, made as the tests need them."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """A certificate with its key: their files, and until when it is valid."""

    certificate: Path
    key: Path
    until: datetime


def make(folder: Path, days: float = 30, *, password: str = "", by: Pair | None = None, begins: float = -60) -> Pair:
    """Make a certificate that begins and ends so many days from now, signed by itself or by another one, its chain."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc).replace(microsecond=0)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
    issuer, issuer_key = name, key
    if by is not None:
        issuer = x509.load_pem_x509_certificate(by.certificate.read_bytes()).subject
        loaded = serialization.load_pem_private_key(by.key.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        issuer_key = loaded
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begins))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    pair = Pair(folder / "fullchain.pem", folder / "privkey.pem", now + timedelta(days=days))
    chain = by.certificate.read_bytes() if by else b""
    pair.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM) + chain)
    locked = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    return pair


@dataclass
class Server:
    """Who serves a certificate on a port of the loopback, and how many handshakes have come to their end there."""

    port: int
    finished: int = 0


@contextmanager
def serving(pair: Pair) -> Iterator[Server]:
    """Serve a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(listening.getsockname()[1])

        def answer() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                try:
                    with context.wrap_socket(connection, server_side=True):
                        server.finished += 1
                except OSError:
                    # The client refuses the certificate, or has seen enough.
                    connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield server
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=10)
