"""Certificates: what can be served, what is served, and what people have to mend."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import certificates
import pytest

from checker import tls
from checker.tls import Fault, TlsError


def test_a_certificate_with_its_key_can_be_served_until_it_ends(tmp_path: Path) -> None:
    own = certificates.make(tmp_path / "own", days=30)
    assert tls.check(own.certificate, own.key) == own.until
    of_authority = certificates.make(tmp_path / "signed", days=20, by=own)
    assert tls.check(of_authority.certificate, of_authority.key) == of_authority.until


def refused(certificate: Path, key: Path) -> tuple[Fault, str]:
    with pytest.raises(TlsError) as caught:
        tls.check(certificate, key)
    return caught.value.fault, str(caught.value)


def test_files_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    own, other = certificates.make(tmp_path / "own"), certificates.make(tmp_path / "other")
    fault, said = refused(own.certificate, other.key)
    assert (fault, str(own.certificate) in said, str(other.key) in said) == (Fault.NONE, True, True)
    assert "KEY_VALUES_MISMATCH" in said
    assert refused(own.key, own.key)[0] is Fault.NONE
    assert refused(own.certificate, own.certificate)[0] is Fault.NONE
    absent = tmp_path / "absent.pem"
    gone = (Fault.UNREADABLE, f"{absent} cannot be read (No such file or directory)")
    assert refused(absent, own.key) == refused(own.certificate, absent) == gone
    for none in (b"\xff\xfe\x00", b""):
        absent.write_bytes(none)
        assert refused(absent, own.key)[0] is Fault.NONE
    absent.write_bytes("Größe\n".encode("latin-1") + own.certificate.read_bytes())
    assert tls.check(absent, own.key) == own.until


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    locked = certificates.make(tmp_path, password="sesame")
    assert f"{locked.key} has a password" in refused(locked.certificate, locked.key)[1]


@pytest.mark.parametrize(("begins", "days", "said"), [(-9, -1, "expired"), (1, 9, "not yet valid")])
def test_a_certificate_that_is_not_of_now_is_refused(tmp_path: Path, begins: float, days: float, said: str) -> None:
    old = certificates.make(tmp_path, days=days, begins=begins)
    fault, words = refused(old.certificate, old.key)
    assert fault is Fault.NOT_OF_NOW
    assert said in words
    assert str(old.certificate) in words


def test_what_is_served_is_held_against_the_file(tmp_path: Path) -> None:
    authority = certificates.make(tmp_path / "authority")
    own = certificates.make(tmp_path / "own", days=20, by=authority)
    # Of the same authority: clients would take it, and it is another one all the same.
    renewed = certificates.make(tmp_path / "renewed", days=90, by=authority)
    with certificates.serving(own) as server:
        assert tls.served("127.0.0.1", server.port, own.certificate) == own.until
        for other in (renewed, authority):
            with pytest.raises(TlsError) as caught:
                tls.served("127.0.0.1", server.port, other.certificate)
            assert caught.value.fault is Fault.OTHER
        for damage in (b"", own.certificate.read_bytes().replace(b"M", b"\xe9", 1)):
            (tmp_path / "damaged.pem").write_bytes(damage)
            with pytest.raises(TlsError, match="has no certificate in PEM") as caught:
                tls.served("127.0.0.1", server.port, tmp_path / "damaged.pem")
            assert caught.value.fault is Fault.UNREADABLE
    with pytest.raises(TlsError, match="refused") as caught:
        tls.served("127.0.0.1", server.port, own.certificate)
    assert caught.value.fault is Fault.NONE


def test_a_certificate_that_has_ended_while_it_is_served_is_not_of_now(tmp_path: Path) -> None:
    old = certificates.make(tmp_path, days=-1)
    with certificates.serving(old) as server, pytest.raises(TlsError) as caught:
        tls.served("127.0.0.1", server.port, old.certificate)
    assert caught.value.fault is Fault.NOT_OF_NOW


def test_to_look_at_a_certificate_loads_no_tier(tmp_path: Path) -> None:
    own = certificates.make(tmp_path)
    with certificates.serving(own) as server:
        assert tls.served("127.0.0.1", server.port, own.certificate) == own.until
        with socket.create_connection(("127.0.0.1", server.port)) as other:
            other.shutdown(socket.SHUT_WR)
            # Who came before has had its answer then.
            other.recv(1)
        assert server.finished == 0, "which is when a connection to the tier is made"


def test_what_is_no_tls_serves_no_certificate(tmp_path: Path) -> None:
    own = certificates.make(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor() as pool:

        def answer(said: bytes) -> None:
            with listening.accept()[0] as connection:
                connection.recv(16384)
                connection.sendall(said)

        for said in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
            answered = pool.submit(answer, said)
            with pytest.raises(TlsError) as caught:
                tls.served("127.0.0.1", listening.getsockname()[1], own.certificate)
            assert caught.value.fault is Fault.NONE
            answered.result(timeout=10)
