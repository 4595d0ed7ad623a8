"""Draining: a tier goes when it has served long enough and nobody waits for it, and holds nobody up for ever."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import fake_tier
import pytest

from checker import drain, llama_server, tier

# Takes connections, says so to who connects, and keeps them.
PROXY = """
import socket, sys
with socket.socket(socket.AF_UNIX) as port:
    port.bind(sys.argv[1])
    port.listen()
    kept = []
    while True:
        kept.append(port.accept()[0])
        kept[-1].send(b"!")
"""


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run what stands in front of the tier; its port is the socket `port` in the test's folder."""
    with subprocess.Popen([sys.executable, "-c", PROXY, tmp_path / "port"]) as process:
        while not connects(tmp_path / "port"):
            time.sleep(0.01)
        yield process
        process.kill()


def connects(port: Path) -> socket.socket | None:
    """Return a connection that the proxy has taken, None when it is not there yet."""
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(str(port))
    except OSError:
        return None
    client.recv(1)
    return client


def is_held(proxy: subprocess.Popen[bytes]) -> bool:
    """Whether the proxy is stopped, or is so when its turn on the processor comes."""
    time.sleep(0.1)
    return Path(f"/proc/{proxy.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.fixture
def server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: subprocess.Popen[bytes]
) -> Iterator[fake_tier.Server]:
    """Serve tier `deep`, whose spec is on a host that is up."""
    load = tier.load
    monkeypatch.setattr(tier, "load", lambda name: load(name, tmp_path))
    monkeypatch.setattr(drain, "_POLL_S", 0.01)
    monkeypatch.setattr(drain, "_BUS", tmp_path / "absent")
    monkeypatch.setenv("MAINPID", str(proxy.pid))
    with fake_tier.serving(tmp_path) as played:
        (tmp_path / "deep.json").write_text(json.dumps(played.spec.to_json()))
        yield played


def looks(server: fake_tier.Server) -> int:
    return server.asked.count(("/slots", {}))


class Told(list[bool]):
    """Slots of which each look tells anew."""

    def __init__(self, tell: Callable[[], list[bool]]) -> None:
        super().__init__()
        self.tell = tell

    def __iter__(self) -> Iterator[bool]:
        return iter(self.tell())


def crash() -> list[bool]:
    raise ConnectionAbortedError


def test_an_idle_tier_goes_at_once(server: fake_tier.Server, proxy: subprocess.Popen[bytes]) -> None:
    assert drain.drain(server.spec, proxy.pid, 0, 60) is None
    assert looks(server) == 3, "between two requests of a client a slot is idle for a moment"
    assert is_held(proxy)


def test_a_proxy_that_is_held_ends_by_sigterm_without_taking_another_connection(
    server: fake_tier.Server, proxy: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert drain.drain(server.spec, proxy.pid, 0, 60) is None
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "port"))
        proxy.send_signal(signal.SIGTERM)
        proxy.send_signal(signal.SIGCONT)
        assert proxy.wait(10) == -signal.SIGTERM
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_what_reached_the_server_before_the_proxy_was_held_is_finished(
    server: fake_tier.Server, proxy: subprocess.Popen[bytes]
) -> None:
    held = []

    def busy_at_the_third_look() -> list[bool]:
        held.append(is_held(proxy))
        return [len(held) == 3]

    server.busy = Told(busy_at_the_third_look)
    assert drain.drain(server.spec, proxy.pid, 0, 60) is None
    assert held == [False, False, True, False, False, True]


@pytest.fixture
def look_s(server: fake_tier.Server, monkeypatch: pytest.MonkeyPatch) -> float:
    """Have every look take so long, by the only clock there is."""
    clock = SimpleNamespace(monotonic=lambda: 0.05 * looks(server), sleep=lambda seconds: None)
    monkeypatch.setattr(drain, "time", clock)
    return 0.05


def test_what_was_connected_before_the_proxy_was_held_is_waited_for_however_late_it_reaches_the_server(
    server: fake_tier.Server, proxy: subprocess.Popen[bytes], tmp_path: Path, look_s: float
) -> None:
    """Client, proxy and server have to have their turn on a busy processor."""
    clients, busy = [], []

    def one_connects_after_the_second_look() -> list[bool]:
        if looks(server) == 2:
            clients.append(connects(tmp_path / "port"))
        busy.append(0.8 <= looks(server) * look_s < 1.5)
        return [busy[-1]]

    server.busy = Told(one_connects_after_the_second_look)
    assert drain.drain(server.spec, proxy.pid, 0, 60) is None
    assert busy.count(True) == 14, "it was answered"
    assert is_held(proxy)


def test_a_connection_by_which_nothing_is_asked_is_waited_for_once(
    server: fake_tier.Server, proxy: subprocess.Popen[bytes], tmp_path: Path, look_s: float
) -> None:
    clients = []

    def one_connects_after_the_second_look() -> list[bool]:
        if looks(server) == 2:
            clients.append(connects(tmp_path / "port"))
        return [False]

    server.busy = Told(one_connects_after_the_second_look)
    assert drain.drain(server.spec, proxy.pid, 0, 60) is None
    asked = looks(server)
    assert 1.0 <= asked * look_s < 1.5
    proxy.send_signal(signal.SIGCONT)
    assert drain.drain(server.spec, proxy.pid, 0, 60) is None
    assert looks(server) - asked == 3, "it was there before"


def test_a_proxy_that_ends_meanwhile_is_no_reason_to_wait(
    server: fake_tier.Server, proxy: subprocess.Popen[bytes]
) -> None:
    proxy.kill()
    proxy.wait()
    assert drain.drain(server.spec, proxy.pid, 0, 60) is None


def test_a_busy_tier_goes_when_its_last_slot_is_idle(server: fake_tier.Server, proxy: subprocess.Popen[bytes]) -> None:
    server.busy = [False, True]
    threading.Timer(0.2, server.busy.__setitem__, (1, False)).start()
    began = time.monotonic()
    assert drain.drain(server.spec, proxy.pid, 0, 60) is None
    assert 0.2 <= time.monotonic() - began < 10


def test_a_moment_between_two_requests_is_no_idleness(server: fake_tier.Server, proxy: subprocess.Popen[bytes]) -> None:
    server.busy = Told(lambda: [looks(server) % 2 == 0])
    assert drain.drain(server.spec, proxy.pid, 0, 0.2) == "deep: still busy after 0.2 s, what it works on is cut off"
    assert looks(server) > 4
    assert not is_held(proxy)


def ready_since(server: fake_tier.Server, seconds: float) -> None:
    """Have the tier be ready for so long; its socket is older, by as long as the load took."""
    os.utime(server.socket, (0, time.time() - seconds - 1000))
    server.spec.ready_file.write_text(f"{time.monotonic() - seconds}\n")


def test_a_tier_serves_for_its_residency_although_it_is_idle(
    server: fake_tier.Server, proxy: subprocess.Popen[bytes]
) -> None:
    ready_since(server, 9.7)
    began = time.monotonic()
    assert drain.drain(server.spec, proxy.pid, 10, 60) is None
    assert time.monotonic() - began >= 0.2
    ready_since(server, 11)
    asked = looks(server)
    assert drain.drain(server.spec, proxy.pid, 10, 60) is None
    assert looks(server) - asked == 3


def test_residency_may_be_longer_than_what_a_tier_works_on_is_waited_for(
    server: fake_tier.Server, proxy: subprocess.Popen[bytes]
) -> None:
    ready_since(server, 99)
    began = time.monotonic()
    assert drain.drain(server.spec, proxy.pid, 100, 0.9) is None
    assert 0.9 <= time.monotonic() - began < 1.8


def test_a_tier_that_is_busy_when_its_residency_ends_is_waited_for_as_long_as_any(
    server: fake_tier.Server, proxy: subprocess.Popen[bytes]
) -> None:
    server.busy = [True]
    ready_since(server, 99.5)
    began = time.monotonic()
    assert drain.drain(server.spec, proxy.pid, 100, 0.5) == (
        "deep: still busy after 0.5 s more than the 100 s that it serves at least, what it works on is cut off"
    )
    assert 0.9 <= time.monotonic() - began < 10


def test_a_tier_that_does_not_tell_since_when_it_is_ready_is_not_kept_for_that(
    server: fake_tier.Server, proxy: subprocess.Popen[bytes]
) -> None:
    assert drain.drain(server.spec, proxy.pid, 100, 60) is None
    assert looks(server) == 3


@pytest.mark.parametrize("gone", ["socket", "key", "crash"])
def test_who_does_not_answer_is_not_waited_for(
    server: fake_tier.Server, proxy: subprocess.Popen[bytes], gone: str
) -> None:
    server.busy = [True]
    if gone == "socket":
        server.socket.unlink()
    elif gone == "key":
        Path(server.key_file).unlink()
    else:
        server.busy = Told(crash)
    began = time.monotonic()
    assert drain.drain(server.spec, proxy.pid, 100, 60) is None
    assert time.monotonic() - began < 10


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a look wait for its answer for less than a second."""
    monkeypatch.setattr(llama_server, "_CONNECT_S", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_silent_while_it_computes_a_batch_of_a_prompt_is_waited_for(
    server: fake_tier.Server, proxy: subprocess.Popen[bytes]
) -> None:
    """It answers between two batches alone."""
    began = time.monotonic()

    def computes_for_a_second() -> list[bool]:
        time.sleep(max(0.0, began + 1 - time.monotonic()))
        return [False]

    server.busy = Told(computes_for_a_second)
    assert drain.drain(server.spec, proxy.pid, 0, 60) is None
    assert 1 <= time.monotonic() - began < 10


@pytest.mark.usefixtures("impatient")
def test_a_server_that_stays_silent_is_cut_off_at_last(
    server: fake_tier.Server, proxy: subprocess.Popen[bytes]
) -> None:
    server.busy = Told(lambda: time.sleep(0.5) or [False])
    assert "still busy after 0.3 s" in str(drain.drain(server.spec, proxy.pid, 0, 0.3))


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_stopped_is_not_waited_for(server: fake_tier.Server, proxy: subprocess.Popen[bytes]) -> None:
    server.socket.unlink()
    with subprocess.Popen([sys.executable, "-c", PROXY, server.socket]) as stopped:
        while not connects(server.socket):
            time.sleep(0.01)
        stopped.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert drain.drain(server.spec, proxy.pid, 0, 60) is None
        assert time.monotonic() - began < 10
        stopped.kill()


@pytest.mark.parametrize(
    ("says", "waits"), [("running", True), ("degraded", True), ("starting", True), ("stopping", False), ("", False)]
)
def test_a_host_that_goes_down_waits_for_nobody(
    server: fake_tier.Server,
    proxy: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    says: str,
    waits: bool,
) -> None:
    (tmp_path / "bus").touch()
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\necho {says}\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setattr(drain, "_BUS", tmp_path / "bus")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    server.busy = [True]
    assert (drain.drain(server.spec, proxy.pid, 0, 1) is not None) == waits
    assert (looks(server) > 1) == waits


def test_where_the_proxy_has_ended_by_itself_only_what_asks_the_server_is_waited_for(
    server: fake_tier.Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    server.busy = Told(lambda: [time.monotonic() < began + 0.3])
    monkeypatch.setenv("MAINPID", "")
    assert drain.main("deep", 100, 60) == 0
    assert time.monotonic() >= began + 0.3
    monkeypatch.delenv("MAINPID")
    assert drain.main("deep", 100, 60) == 0
    assert time.monotonic() < began + 10, "how long it has served is no matter"
    server.busy, asked = [True], len(server.asked)
    assert drain.main("deep", 100, 60, clients_only=True) == 0
    assert len(server.asked) == asked
    assert capsys.readouterr() == ("", "")


def test_the_proxy_stops_in_any_case_and_the_journal_says_what_is_cut_off(
    server: fake_tier.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.busy = [True]
    assert drain.main("deep", 0, 0.05) == 0
    assert capsys.readouterr().err == "deep: still busy after 0.05 s, what it works on is cut off\n"
    assert drain.main("fast", 0, 0.05) == 0
    assert "no tier 'fast' on this host" in capsys.readouterr().err
