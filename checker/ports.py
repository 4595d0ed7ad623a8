"""Who a process is, and who listens on a TCP port of this host: from /proc, from systemd what its own sockets are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from checker import systemd

# Where systemd itself runs, which holds the sockets of its .socket units.
_SYSTEMD = "init.scope"
_LISTEN = "0A"


@dataclass(frozen=True)
class Listener:
    """A process that listens on a port; `unit` is empty when it belongs to none, the .socket where systemd listens."""

    pid: int
    name: str
    unit: str


def _inodes(port: int, proc: Path) -> set[str]:
    found = set()
    for table in ("net/tcp", "net/tcp6"):
        path = proc / table
        if not path.exists():
            continue
        for line in path.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rsplit(":", 1)[1], 16) == port:
                found.add(fields[9])
    return found


def _unit(process: Path) -> str:
    match = re.search(r"/([^/\n]+\.(?:service|scope|socket))", (process / "cgroup").read_text())
    return match.group(1) if match else ""


def who(pid: int, proc: Path = Path("/proc")) -> tuple[str, str]:
    """Return the name of a process and the unit that it belongs to; empty where there is none, or it has ended."""
    process = proc / str(pid)
    try:
        return (process / "comm").read_text().strip(), _unit(process)
    except (FileNotFoundError, ProcessLookupError):
        return "", ""


def listeners(port: int, proc: Path = Path("/proc")) -> tuple[Listener, ...]:
    """Return the processes that listen on a port, on any address; needs root to see those of other users."""
    wanted = {f"socket:[{inode}]" for inode in _inodes(port, proc)}
    found = []
    for process in proc.glob("[0-9]*") if wanted else ():
        try:
            if any(str(fd.readlink()) in wanted for fd in (process / "fd").iterdir()):
                unit = _unit(process)
                unit = systemd.socket_unit(port) if unit == _SYSTEMD else unit
                found.append(Listener(int(process.name), (process / "comm").read_text().strip(), unit))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended while we looked, or not even root may look at it (PID 1 of some containers)
    return tuple(found)
