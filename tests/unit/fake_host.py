"""A host whose systemd, ports and NVML tell what a test wants, around the tier that `fake_tier` plays."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import fake_tier
import pytest

from checker import exercise, fetched, hardware, ports, systemd
from checker.ports import Listener
from checker.systemd import Line
from checker.tier import Front
from inventories import BIG, SMALL

UNIT = "llama-tier-deep.service"
FRONT = Front("deep")
RIVAL = "llama-tier-fast.service"
PID = 4711
RUN = "0123456789abcdef0123456789abcdef"
STRAY = {"name": "GeForce 7", "uuid": "GPU-stray"}


def gpu(card: dict[str, str], bus: int = 1) -> hardware.Gpu:
    return hardware.Gpu(card["name"], card["uuid"], f"00000000:{bus:02X}:00.0", "8.6", 8192, 1400, None, None)


def state(uuid: str, processes: list[hardware.GpuProcess], **changes: object) -> hardware.CardState:
    known: dict[str, object] = {
        "graphics_mhz": 1800,
        "graphics_max_mhz": 1900,
        "memory_mhz": 7000,
        "memory_max_mhz": 7001,
        "power_w": 120.0,
        "power_limit_w": 200.0,
        "temperature_c": 60,
        "pcie_generation": 4,
        "pcie_generation_max": 4,
        "pcie_width": 16,
        "pcie_width_max": 16,
        "slowed_by": (),
    }
    return hardware.CardState(uuid, 1400.0, tuple(processes), **{**known, **changes})  # type: ignore[arg-type]


def lines(messages: list[str], pid: int = PID) -> list[Line]:
    """Return messages as the journal has them, one a second from the process's start on."""
    return [Line(2_000_000 + second * 1_000_000, pid, message) for second, message in enumerate(messages)]


@dataclass
class Host:
    """What systemd and NVML tell; an error in place of an answer is raised.

    `front` has units that are not inactive, `booted` those that are up since the boot; `verified` is the sha256 with
    which the model's file was verified.
    """

    state: systemd.UnitState | systemd.SystemdError = field(
        default_factory=lambda: systemd.UnitState("active", "running", PID, RUN, "success", 1_000_000, 4_140_000)
    )
    journal: list[Line] | systemd.SystemdError = field(
        default_factory=lambda: lines([fake_tier.as_jsonl(message) for message in fake_tier.messages(fake_tier.LOG)])
    )
    front: dict[str, str] | systemd.SystemdError = field(default_factory=lambda: {FRONT.socket: "active"})
    listeners: tuple[Listener, ...] = (Listener(1, "systemd", FRONT.socket), Listener(815, "proxy", FRONT.proxy))
    gpus: tuple[hardware.Gpu, ...] | hardware.HardwareError = (gpu(BIG, 1), gpu(SMALL, 2), gpu(STRAY, 3))
    held: dict[str, list[hardware.GpuProcess]] = field(
        default_factory=lambda: {
            BIG["uuid"]: [hardware.GpuProcess(PID, 262.5), hardware.GpuProcess(12, 1000.0)],
            SMALL["uuid"]: [hardware.GpuProcess(PID, 60.0), hardware.GpuProcess(PID, 33.0)],
            STRAY["uuid"]: [hardware.GpuProcess(12, 1000.0)],
        }
    )
    names: dict[int, tuple[str, str]] = field(default_factory=lambda: {12: ("ollama", "ollama.service")})
    verified: str | None = "ab" * 32
    readings: dict[str, object] = field(default_factory=dict)
    failed_before: bool = False
    booted: set[str] | systemd.SystemdError = field(default_factory=set)


def told(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def play(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Return a host on which all is well; what a test changes of it is told from then on."""
    played = Host()

    def processes(uuid: str) -> tuple[hardware.GpuProcess, ...]:
        return tuple(played.held[uuid])

    def unit_state(unit: str) -> Any:
        if unit == UNIT:
            return told(played.state)
        assert unit in (*FRONT.units, RIVAL)
        active_state = told(played.front).get(unit, "inactive")
        return systemd.UnitState(active_state, "", None, "", "success", 0, 0)

    def printed(unit: str, run: str) -> Any:
        assert (unit, run) == (UNIT, RUN)
        return told(played.journal)

    monkeypatch.setattr(systemd, "unit_state", unit_state)
    monkeypatch.setattr(systemd, "is_active", lambda unit: unit_state(unit).active_state == "active")
    monkeypatch.setattr(systemd, "has_failed", lambda _, now: now.active_state == "failed" or played.failed_before)
    monkeypatch.setattr(systemd, "came_with_boot", lambda unit: unit in told(played.booted))
    monkeypatch.setattr(systemd, "printed", printed)
    monkeypatch.setattr(systemd, "journal", lambda *run: [line.text for line in printed(*run)])
    monkeypatch.setattr(ports, "listeners", lambda port: played.listeners)
    monkeypatch.setattr(ports, "who", lambda pid: played.names.get(pid, ("", "")))
    monkeypatch.setattr(hardware, "opened", nullcontext)
    monkeypatch.setattr(hardware, "read_gpus", lambda: told(played.gpus))
    monkeypatch.setattr(hardware, "processes", processes)
    monkeypatch.setattr(exercise, "host_mib", lambda pid: 240.0)
    monkeypatch.setattr(fetched, "sha256_of", lambda file: played.verified)
    monkeypatch.setattr(hardware, "read_state", lambda uuid: state(uuid, list(processes(uuid)), **played.readings))
    return played
