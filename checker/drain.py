"""Let a tier finish what it works on before it gives way: `ExecStop=` of its proxy, as the tier's unprivileged user.

A server that is told to stop with a request in flight cuts it off, and hangs until its time limit; so the proxy goes
first, and waits here. It takes connections to its end, and cuts those off; so it is held before the last look, and what
comes then waits at the port, which is systemd's.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from checker import tier
from checker.llama_server import LlamaServer, ServerError, SilentError

_POLL_S = 0.05
# Two looks in a row: between two requests of a client a slot is idle for a moment.
_LOOKS = 2
# So long what a new connection asks for may be on its way to the server: client, proxy and server have to have their
# turn on a busy processor.
_ON_ITS_WAY_S = 1.0
# Clients that come meanwhile wait: what asks the server itself has no more than this, however long its request is.
_DIRECT_S = 30.0
_BUS = Path("/run/dbus/system_bus_socket")
_UP = ("running", "degraded", "starting", "initializing", "maintenance")


def drain(spec: tier.TierSpec, proxy: int | None, residency_s: float, most_s: float) -> str | None:
    """Wait until a tier may be taken away; return None, or a sentence when the wait was given up.

    It may go when it has been ready for `residency_s` and no slot is busy, or is not there to ask, or the host goes
    down. What it works on when it has served so long has `most_s` more. A server that takes a question and gives no
    answer is busy: it computes a batch of a prompt.
    `proxy` is the process in front of it; it may be left held (SIGSTOP): systemd's SIGTERM ends it as it is. None when
    it has ended by itself, for nobody was connected: what is worked on then is a verification's, which asks the server,
    or came through the front of a tier in whose place this one answers.
    """
    server = LlamaServer.of(spec)
    rest = max(0.0, residency_s - _ready_s(spec))
    resident_at = time.monotonic() + rest
    deadline = resident_at + most_s
    idle, held = 0, False
    since = dict.fromkeys(_sockets(proxy), -math.inf) if proxy else {}
    while (now := time.monotonic()) < deadline:
        since = {name: since.get(name, now) for name in _sockets(proxy)} if proxy else {}
        on_its_way = any(now - opened < _ON_ITS_WAY_S for opened in since.values())
        try:
            idle = 0 if server.busy_slots() or on_its_way else idle + 1
        except SilentError:
            if _is_stopped(spec):
                return None
            idle = 0
        except ServerError:
            return None
        resident = now >= resident_at
        if resident and idle >= _LOOKS:
            if held or proxy is None:
                return None
            held = True
            _send(proxy, signal.SIGSTOP)
            continue
        if held and proxy:
            held = False
            _send(proxy, signal.SIGCONT)
        # Asked only when there is something to wait for: the answer takes as long as a whole look.
        if not (resident and idle) and _host_stops():
            return None
        time.sleep(_POLL_S)
    more = f" more than the {residency_s:g} s that it serves at least" if rest else ""
    return f"{spec.name}: still busy after {most_s:g} s{more}, what it works on is cut off"


def _sockets(pid: int) -> set[str]:
    """Return the names of the sockets that a process has open, none when it has ended."""
    names = set()
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        # One that was closed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            names.add(str(descriptor.readlink()))
    return {name for name in names if name.startswith("socket:")}


def _is_stopped(spec: tier.TierSpec) -> bool:
    """Whether the process that listens at the tier's socket is stopped (SIGSTOP): it works on nothing."""
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
        client.connect(spec.socket)
        pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        return state in ("T", "t")
    return False


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _ready_s(spec: tier.TierSpec) -> float:
    """Return for how long a tier has been ready; without end when it is not, for then there is nothing to wait for."""
    try:
        return time.monotonic() - float(spec.ready_file.read_text(encoding="utf-8"))
    except OSError:
        return math.inf


def _host_stops() -> bool:
    """Whether the host shuts down: then the bus goes too, and no answer is one."""
    if not _BUS.exists():
        return False
    done = subprocess.run(["systemctl", "is-system-running"], capture_output=True, text=True, check=False)
    return done.stdout.strip() not in _UP


def main(name: str, residency_s: float, most_s: float, *, clients_only: bool = False) -> int:
    """Drain a tier as ExecStop; the exit code is always 0, for the proxy stops in any case."""
    # Empty when the proxy has ended by itself.
    proxy = int(os.environ.get("MAINPID") or 0) or None
    if proxy is None:
        if clients_only:
            return 0
        residency_s, most_s = 0, min(most_s, _DIRECT_S)
    try:
        said = drain(tier.load(name), proxy, residency_s, most_s)
    except tier.TierSpecError as error:
        said = str(error)
    if said:
        print(said, file=sys.stderr)
    return 0
