"""Units of this host through systemctl and journalctl."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
from dataclasses import dataclass
from typing import Any

# For an answer. That a unit starts or stops is waited for as long as systemd itself does: TimeoutStartSec= and
# TimeoutStopSec= bound it, and how long a tier goes on with what it works on is the inventory's (tiers_drain_s).
_TIMEOUT_S = 240
_POLL_S = 0.05
_FIRST_LINES = 10_000

# Readiness says it of a server that is gone. The journal tells more: what the engine said where it aborted, and how
# systemd found it ended.
ENDED = "llama-server ended before it was ready"
_ABORT = re.compile(r"\S+\.(?:c|cpp|cu|h|cuh):\d+: ")
# systemd's own id of "Failed with result ..." (sd-messages.h, SD_MESSAGE_UNIT_FAILURE_RESULT).
_UNIT_FAILED = "d9b373ed55a64feb8242e02dbe79a49c"
_END = re.compile(r": Main process exited, |: A process of this unit has been killed by the OOM killer")


class SystemdError(Exception):
    """A command of systemd that failed; the message holds the command and what it printed on stderr."""


@dataclass(frozen=True)
class UnitState:
    """State of one unit, in the words of `systemctl show`.

    `main_pid` is None when no main process runs. The two times are of the last start, in microseconds of the monotonic
    clock, and 0 when there was none: start of the main process, and entry into "active".
    """

    active_state: str
    sub_state: str
    main_pid: int | None
    invocation_id: str
    result: str
    started_monotonic_us: int
    active_monotonic_us: int


def run_aside(what: str, *command: str) -> None:
    """Have systemd run a command until it succeeds, whatever becomes of this process; return when it was started."""
    patience = ("--property=Restart=on-failure", "--property=RestartSec=30")
    _run("systemd-run", "--quiet", "--collect", f"--description={what}", *patience, *command)


def unit_state(unit: str) -> UnitState:
    """Read the state of a unit; one that does not exist is "inactive", as systemd says."""
    shown = _show(
        unit,
        "ActiveState",
        "SubState",
        "MainPID",
        "InvocationID",
        "Result",
        "ExecMainStartTimestampMonotonic",
        "ActiveEnterTimestampMonotonic",
    )
    return UnitState(
        active_state=shown.get("ActiveState", "unknown"),
        sub_state=shown.get("SubState", "unknown"),
        main_pid=int(shown.get("MainPID") or 0) or None,
        invocation_id=shown.get("InvocationID", ""),
        result=shown.get("Result", "unknown"),
        started_monotonic_us=int(shown.get("ExecMainStartTimestampMonotonic") or 0),
        active_monotonic_us=int(shown.get("ActiveEnterTimestampMonotonic") or 0),
    )


def journal(unit: str, invocation_id: str) -> list[str]:
    """Return what one invocation of a unit printed, and what systemd said about it, oldest line first."""
    if not invocation_id:
        return []
    _run("journalctl", "--sync")
    printed = f"_SYSTEMD_INVOCATION_ID={invocation_id}"
    about = (f"UNIT={unit}", f"INVOCATION_ID={invocation_id}")
    return _run("journalctl", "--no-pager", "--quiet", "--all", "--output=cat", printed, "+", *about).splitlines()


@dataclass(frozen=True)
class Line:
    """One line of the journal: microseconds of the monotonic clock, the process that said it (0: unknown), the text."""

    monotonic_us: int
    pid: int
    text: str


def printed(unit: str, invocation_id: str) -> list[Line]:
    """Return the first lines that the processes of one invocation of a unit printed, oldest first.

    A start prints some hundred lines; what a server logs of the requests of many weeks is left where it is.
    """
    if not invocation_id:
        return []
    _run("journalctl", "--sync")
    command = (
        *("journalctl", "--no-pager", "--quiet", "--all", "--output=json", "--output-fields=MESSAGE,_PID"),
        *(f"_SYSTEMD_INVOCATION_ID={invocation_id}", f"_SYSTEMD_UNIT={unit}"),
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace") as run:
        assert run.stdout is not None and run.stderr is not None
        entries = list(itertools.islice(run.stdout, _FIRST_LINES))
        if len(entries) == _FIRST_LINES:
            run.kill()
        elif run.wait():
            raise SystemdError(f"{' '.join(command)} failed (exit {run.returncode}): {run.stderr.read().strip()}")
    return [_line(json.loads(entry)) for entry in entries]


def _line(entry: dict[str, Any]) -> Line:
    said = entry.get("MESSAGE") or ""
    # What is not UTF-8 comes as a list of bytes.
    text = bytes(said).decode(errors="replace") if isinstance(said, list) else said
    return Line(int(entry["__MONOTONIC_TIMESTAMP"]), int(entry.get("_PID") or 0), text)


def has_failed(unit: str, state: UnitState) -> bool:
    """Whether the last run of a unit failed; the end of its cooldown has systemd forget that, and not the journal."""
    if state.active_state != "inactive" or not state.invocation_id:
        return state.active_state == "failed"
    _run("journalctl", "--sync")
    last = (f"UNIT={unit}", f"INVOCATION_ID={state.invocation_id}", f"MESSAGE_ID={_UNIT_FAILED}")
    return bool(_run("journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=1", *last).strip())


def why_failed(unit: str) -> str:
    """Say why the last run of a unit failed: what readiness said, else the engine's errors, else the journal's end.

    Of a load that failed the first errors tell, which the others follow from; of a server that ran the last ones.
    """
    state = unit_state(unit)
    try:
        lines = [line for line in journal(unit, state.invocation_id) if line.strip()]
    except SystemdError as error:
        return str(error)
    said = [line for line in lines if line.startswith("not ready: ") and ENDED not in line]
    errors = [line for line in lines if _is_error(line)]
    ran = state.started_monotonic_us <= state.active_monotonic_us
    chosen = said[-1:] or (errors[-3:] if ran else errors[:3]) or lines[-3:]
    return " | ".join(map(_message, chosen)) or f"the journal of {unit} is empty (result {state.result})"


def _is_error(line: str) -> bool:
    engine = '"level":"error"' in line.replace(" ", "") or " E " in line[:40] or _ABORT.match(line)
    return bool(engine or _END.search(line))


def _message(line: str) -> str:
    try:
        return str(json.loads(line).get("msg", line)).strip()
    except (json.JSONDecodeError, AttributeError):
        return line.strip()


def restart(unit: str) -> None:
    """Start a unit anew and return as soon as the new start is under way, which is long before it is active.

    `--no-block` alone returns while the unit still shows the state of its last run.
    """
    before = unit_state(unit).invocation_id
    _run("systemctl", "restart", "--no-block", unit)
    while True:
        shown = _show(unit, "Job", "InvocationID")
        if shown.get("InvocationID", "") != before or shown.get("Job", "0") in ("", "0"):
            return
        time.sleep(_POLL_S)


def start(unit: str, timeout_s: float | None = None) -> None:
    """Start a unit and wait until it is active, at most so many seconds where they are given."""
    _run("systemctl", "start", unit, timeout_s=timeout_s)


def active_units(pattern: str) -> list[str]:
    """Return the names of units that are active, or on their way, and fit a pattern such as `llama-tier-*`."""
    command = ("systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating,reloading", pattern)
    return [line.split()[0] for line in _run(*command).splitlines() if line.strip()]


def start_alone(unit: str) -> None:
    """Start a unit without what it wants and requires."""
    _run("systemctl", "start", "--job-mode=ignore-requirements", unit)


def user(unit: str) -> str:
    """Return the user that a unit runs as; empty for root."""
    return _show(unit, "User").get("User", "")


def stop(*units: str) -> None:
    """Stop units and wait until they are down."""
    _run("systemctl", "stop", *units, timeout_s=None)


def reset_failed(unit: str) -> None:
    """Forget past failures of a unit, its restart counter included; one that is not loaded has none."""
    if _show(unit, "ActiveState").get("ActiveState") == "failed":
        _run("systemctl", "reset-failed", unit)


def enable(*units: str) -> None:
    """Have units started at boot."""
    _run("systemctl", "enable", *units)


def disable(*units: str) -> None:
    """Have units started at boot no longer."""
    _run("systemctl", "disable", *units)


def daemon_reload() -> None:
    """Have systemd read all unit files again."""
    _run("systemctl", "daemon-reload")


def is_active(unit: str) -> bool:
    """Tell whether a unit is up; one that does not exist is not."""
    return _show(unit, "ActiveState").get("ActiveState") == "active"


def came_with_boot(unit: str) -> bool:
    """Tell whether a unit is up, and was before systemd called the boot finished: nobody else has started it."""
    finished = _run("systemctl", "show", "--property=FinishTimestampMonotonic", "--value").strip()
    state = unit_state(unit)
    return state.active_state == "active" and 0 < state.active_monotonic_us <= int(finished or 0)


def socket_unit(port: int) -> str:
    """Return the unit of a socket that systemd holds on a TCP port; empty when there is none."""
    listed = _run("systemctl", "list-sockets", "--no-legend", "--no-pager", "--plain", "--full")
    found = (line.split() for line in listed.splitlines())
    return next((words[1] for words in found if len(words) > 1 and words[0].endswith(f":{port}")), "")


def needs_daemon_reload(unit: str) -> bool:
    """Tell whether the unit file on disk differs from what systemd has read of it."""
    return _show(unit, "NeedDaemonReload").get("NeedDaemonReload") == "yes"


def _show(unit: str, *properties: str) -> dict[str, str]:
    shown = _run("systemctl", "show", f"--property={','.join(properties)}", unit)
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def _run(*command: str, timeout_s: float | None = _TIMEOUT_S) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise SystemdError(f"{command[0]} is not on this host: a tier needs systemd as its init") from None
    except subprocess.TimeoutExpired:
        raise SystemdError(f"{' '.join(command)}: no answer within {timeout_s:g} s") from None
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or "nothing printed"
        raise SystemdError(f"{' '.join(command)} failed (exit {done.returncode}): {said}")
    return done.stdout
