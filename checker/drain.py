"""Let a tier finish what it works on before it gives way: `ExecStop=` of its proxy, as the tier's unprivileged user.

A server that is told to stop with a request in flight cuts it off, and hangs until its time limit; so the proxy goes
first, and waits here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from checker import tier
from checker.llama_server import LlamaServer, ServerError

_POLL_S = 0.05
# Two looks in a row: between two requests of a client a slot is idle for a moment.
_LOOKS = 2
_BUS = Path("/run/dbus/system_bus_socket")
_UP = ("running", "degraded", "starting", "initializing", "maintenance")


def drain(spec: tier.TierSpec, residency_s: float, most_s: float) -> str | None:
    """Wait until a tier may be taken away; return None, or a sentence when the wait was given up.

    It may go when its server has run for `residency_s` and no slot is busy, or does not answer, or the host goes down.
    """
    server = LlamaServer.of(spec)
    deadline = time.monotonic() + most_s
    idle = 0
    while time.monotonic() < deadline:
        try:
            idle = 0 if server.busy_slots() else idle + 1
        except ServerError:
            return None
        resident = _resident_s(spec) >= residency_s
        if resident and idle >= _LOOKS:
            return None
        # Asked only when there is something to wait for: the answer takes as long as a whole look.
        if not (resident and idle) and _host_stops():
            return None
        time.sleep(_POLL_S)
    return f"{spec.name}: still busy after {most_s:g} s, what it works on is cut off"


def _resident_s(spec: tier.TierSpec) -> float:
    """Return for how long the server has run, by the age of its socket: no bus and no privilege is needed for that."""
    try:
        return time.time() - Path(spec.socket).stat().st_mtime
    except OSError:
        return float("inf")


def _host_stops() -> bool:
    """Whether the host shuts down: then the bus goes too, and no answer is one."""
    if not _BUS.exists():
        return False
    done = subprocess.run(["systemctl", "is-system-running"], capture_output=True, text=True, check=False)
    return done.stdout.strip() not in _UP


def main(name: str, residency_s: float, most_s: float) -> int:
    """Drain a tier as ExecStop; the exit code is always 0, for the proxy stops in any case."""
    # Empty when the proxy has ended by itself: nobody is connected then.
    if not os.environ.get("MAINPID"):
        return 0
    try:
        said = drain(tier.load(name), residency_s, most_s)
    except tier.TierSpecError as error:
        said = str(error)
    if said:
        print(said, file=sys.stderr)
    return 0
