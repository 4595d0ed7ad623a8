"""What a unit printed, by a journalctl that a test puts on PATH; the rest of systemd is asked for real in the lab."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from checker import ports, systemd
from checker.ports import Listener
from checker.systemd import Line


def journalctl(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = directory / "journalctl"
    program.write_text(f'#!/bin/sh\n[ "$1" = --sync ] && exit 0\necho "$*" > {directory}/asked\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def entry(message: object) -> str:
    return json.dumps({"__MONOTONIC_TIMESTAMP": "14668701206", "_PID": "4099", "MESSAGE": message})


def test_lines_come_with_time_and_process_and_survive_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [entry("model loaded"), entry([104, 105, 255]), json.dumps({"__MONOTONIC_TIMESTAMP": "1", "MESSAGE": None})]
    (tmp_path / "lines").write_text("\n".join(lines) + "\n")
    journalctl(tmp_path, monkeypatch, f"cat {tmp_path}/lines")
    assert systemd.printed("deep.service", "abc") == [
        Line(14668701206, 4099, "model loaded"),
        Line(14668701206, 4099, "hi\ufffd"),
        Line(1, 0, ""),
    ]
    asked = (tmp_path / "asked").read_text()
    assert "_SYSTEMD_INVOCATION_ID=abc" in asked and "_SYSTEMD_UNIT=deep.service" in asked
    assert systemd.printed("deep.service", "") == []


def test_only_the_start_of_a_long_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_FIRST_LINES", 3)
    journalctl(tmp_path, monkeypatch, f"while :; do echo '{entry('request')}'; done")
    assert len(systemd.printed("deep.service", "abc")) == 3


def test_a_journal_that_cannot_be_read_says_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journalctl(tmp_path, monkeypatch, "echo No journal files were opened >&2; exit 1")
    with pytest.raises(systemd.SystemdError, match=r"exit 1\): No journal files were opened"):
        systemd.printed("deep.service", "abc")


# Abridged: a load without memory, a prompt without memory behind an RPC server, and what systemd says of an end.
LOAD = [
    json.dumps({"level": level, "msg": message})
    for level, message in (
        ("info", "load_tensors: loading model tensors"),
        ("error", "alloc_tensor_range: failed to allocate CUDA1 buffer of size 193843712\n"),
        ("error", "llama_model_load: error loading model: unable to allocate CUDA1 buffer\n"),
        ("error", "llama_model_load_from_file_impl: failed to load model\n"),
        ("error", "srv  llama_server: exiting due to model loading error\n"),
    )
]
GONE = [
    "not ready: llama-server ended before it was ready: journalctl -u deep.service says why",
    "deep.service: Control process exited, code=exited, status=1/FAILURE",
    "deep.service: Failed with result 'exit-code'.",
    "deep.service: Triggering OnFailure= dependencies.",
]
EXITED, KILLED, ABORTED = (
    f"deep.service: Main process exited, code={what}"
    for what in ("exited, status=1/FAILURE", "killed, status=9/KILL", "killed, status=6/ABRT")
)
REFUSED = '{"level": "error", "msg": "a request was too long"}'
ABORT = "/src/ggml/src/ggml-rpc/ggml-rpc.cpp:566: Remote RPC server crashed or returned malformed response"
TRACE = "/opt/llama-tiers/releases/one/bin/llama-server(+0x923e78)[0x55e3f5f50e78]"
OOM = "deep.service: A process of this unit has been killed by the OOM killer."
CUDA = "alloc_tensor_range: failed to allocate CUDA1 buffer of size 193843712"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every patience end within a third of a second."""
    run = subprocess.run

    def hurry(*given: Any, timeout: float | None, **named: Any) -> Any:
        return run(*given, timeout=timeout and min(timeout, 0.3), **named)

    monkeypatch.setattr(subprocess, "run", hurry)
    monkeypatch.setattr(systemd, "_TIMEOUT_S", 0.3)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("command", ["stop", "start", "restart"])
def test_a_unit_is_waited_for_as_long_as_systemd_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """A tier may go on with what it works on for as long as the inventory says before it stops."""
    systemctl(tmp_path, monkeypatch, "")
    (tmp_path / "systemctl").write_text(
        f"""#!/bin/sh
        cd {tmp_path}
        if [ "$1" = show ]; then
            [ -e ended ] && echo InvocationID=b || printf 'InvocationID=a\\nJob=7\\n'
        else
            (sleep 1; touch ended) > said 2>&1 &
            [ "$2" = --no-block ] || wait
        fi
        """
    )
    {"stop": systemd.stop, "start": systemd.start, "restart": systemd.restart}[command]("deep.service")
    assert (tmp_path / "ended").exists()


@pytest.mark.usefixtures("hurried")
def test_a_question_that_systemd_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl(tmp_path, monkeypatch, "")
    (tmp_path / "systemctl").write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(systemd.SystemdError, match=r"systemctl show .*: no answer within"):
        systemd.is_active("deep.service")


@pytest.mark.parametrize(
    ("active_us", "lines", "why"),
    [
        (0, [*LOAD, EXITED, *GONE], rf"^{CUDA} \| .*unable to allocate CUDA1 buffer \| [^|]*failed to load model$"),
        (0, [LOAD[0], KILLED, *GONE], f"^{KILLED}$"),
        (0, [LOAD[0], OOM, KILLED, *GONE], f"^{OOM} \\| {KILLED}$"),
        (
            0,
            [REFUSED, "not ready: deep: holds nothing on GPU-1", *GONE[1:]],
            "^not ready: deep: holds nothing on GPU-1$",
        ),
        (9, [REFUSED, LOAD[0], REFUSED, ABORT, TRACE, ABORTED], f"^a request was too long \\| {ABORT} \\| {ABORTED}$"),
        (9, [*[REFUSED] * 4, KILLED], f" {KILLED}$"),
    ],
    ids=["load", "killed while it loads", "host out of memory", "readiness", "abort", "killed while it serves"],
)
def test_a_failure_is_told_by_its_cause_and_not_by_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, active_us: int, lines: list[str], why: str
) -> None:
    (tmp_path / "lines").write_text("\n".join(lines) + "\n")
    systemctl(
        tmp_path,
        monkeypatch,
        f"InvocationID=abc\nExecMainStartTimestampMonotonic=5\nActiveEnterTimestampMonotonic={active_us}\n",
    )
    journalctl(tmp_path, monkeypatch, f"cat {tmp_path}/lines")
    assert re.search(why, systemd.why_failed("deep.service"))


@pytest.mark.parametrize(
    ("active_state", "invocation", "script", "failed"),
    [
        ("failed", "abc", "echo of no use; exit 1", True),
        ("active", "abc", "echo of no use; exit 1", False),
        ("inactive", "", "echo of no use; exit 1", False),
        ("inactive", "abc", "echo \"deep.service: Failed with result 'exit-code'.\"", True),
        ("inactive", "abc", "true", False),
    ],
    ids=["failed", "active", "never started", "forgotten", "stopped"],
)
def test_a_failure_that_systemd_was_told_to_forget_is_known_by_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, active_state: str, invocation: str, script: str, failed: bool
) -> None:
    journalctl(tmp_path, monkeypatch, script)
    state = systemd.UnitState(active_state, "", None, invocation, "success", 0, 0)
    assert systemd.has_failed("deep.service", state) is failed
    if (tmp_path / "asked").exists():
        assert {"UNIT=deep.service", "INVOCATION_ID=abc"} < set((tmp_path / "asked").read_text().split())


LISTED = """\
/run/dbus/system_bus_socket dbus.socket               dbus.service
127.0.0.1:18081             other.socket              other.service
127.0.0.1:8081              llama-tier-deep.socket    llama-tier-deep-proxy.service
[::1]:8080                  llama-tier-fast.socket    llama-tier-fast-proxy.service
"""


def systemctl(directory: Path, monkeypatch: pytest.MonkeyPatch, printed: str) -> None:
    (directory / "told").write_text(printed)
    program = directory / "systemctl"
    program.write_text(f"#!/bin/sh\ncat {directory}/told\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("port", "unit"), [(8081, "llama-tier-deep.socket"), (8080, "llama-tier-fast.socket"), (81, ""), (18080, "")]
)
def test_the_socket_unit_of_a_port_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int, unit: str
) -> None:
    systemctl(tmp_path, monkeypatch, LISTED)
    assert systemd.socket_unit(port) == unit
    systemctl(tmp_path, monkeypatch, "")
    assert systemd.socket_unit(port) == ""


@pytest.mark.parametrize(
    ("state", "active", "finished", "with_boot"),
    [
        ("active", "5000000", "5000001", True),
        ("active", "5000000", "5000000", True),
        ("active", "5000001", "5000000", False),
        ("active", "0", "5000000", False),
        ("failed", "4000000", "5000000", False),
        ("active", "5000000", "0", False),
        ("active", "5000000", "", False),
    ],
    ids=["before", "last of all", "later", "never", "down since", "still booting", "unknown"],
)
def test_what_was_up_before_the_boot_was_finished_came_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, active: str, finished: str, with_boot: bool
) -> None:
    program = tmp_path / "systemctl"
    told = f"ActiveState={state}\\nActiveEnterTimestampMonotonic={active}\\n"
    program.write_text(f"#!/bin/sh\ncase $* in *--value*) echo '{finished}';; *) printf '{told}';; esac\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert systemd.came_with_boot("llama-tier-deep.service") is with_boot


def process(proc: Path, pid: int, cgroup: str, comm: str, inode: int) -> None:
    (proc / f"{pid}/fd").mkdir(parents=True)
    (proc / f"{pid}/fd/3").symlink_to(f"socket:[{inode}]")
    (proc / f"{pid}/cgroup").write_text(f"0::/{cgroup}\n")
    (proc / f"{pid}/comm").write_text(f"{comm}\n")


def test_who_listens_for_systemd_is_its_socket_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl(tmp_path, monkeypatch, LISTED)
    proc = tmp_path / "proc"
    process(proc, 1, "init.scope", "systemd", 55)
    process(proc, 70, "system.slice/llama-tier-deep-proxy.service", "systemd-socket-", 55)
    process(proc, 71, "system.slice/nginx.service", "nginx", 56)
    (proc / "net").mkdir()
    line = "0: 0100007F:{:04X} 00000000:0000 {} 00000000:00000000 00:00000000 00000000 0 0 {}"
    table = [line.format(8081, "0A", 55), line.format(8082, "0A", 56), line.format(8081, "01", 56)]
    (proc / "net/tcp").write_text("\n".join(["header", *table]) + "\n")
    assert sorted(ports.listeners(8081, proc), key=lambda each: each.pid) == [
        Listener(1, "systemd", "llama-tier-deep.socket"),
        Listener(70, "systemd-socket-", "llama-tier-deep-proxy.service"),
    ]
    assert ports.listeners(8082, proc) == (Listener(71, "nginx", "nginx.service"),)
    assert ports.listeners(8083, proc) == ()


def test_a_process_is_named_with_its_unit_as_long_as_it_is_there(tmp_path: Path) -> None:
    process(tmp_path, 71, "system.slice/llama-tier-fast.service", "llama-server", 56)
    process(tmp_path, 72, "", "Xorg", 57)
    assert [ports.who(pid, tmp_path) for pid in (71, 72, 73)] == [
        ("llama-server", "llama-tier-fast.service"),
        ("Xorg", ""),
        ("", ""),
    ]
