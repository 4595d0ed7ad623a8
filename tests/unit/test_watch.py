"""Watching cards: what some samples come to, and that it ends with its block."""

from __future__ import annotations

import threading

import pytest
from fake_host import PID, state

from checker import hardware
from checker.hardware import GpuProcess
from checker.watch import Watch, summarise


def test_memory_is_the_most_of_the_process_alone_and_the_last_sample_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [100.0]
    monkeypatch.setattr(
        hardware, "read_state", lambda uuid: state(uuid, [GpuProcess(PID, held[0]), GpuProcess(1, 900.0)])
    )
    before = threading.active_count()
    with Watch(["GPU-a", "GPU-b", "GPU-a"]) as watch:
        held[0] = 300.0
    found = watch.seen(PID)
    assert [(card.uuid, card.peak_mib) for card in found] == [("GPU-a", 300.0), ("GPU-b", 300.0)]
    assert (watch.unread, threading.active_count()) == ((), before)


def test_what_is_held_between_begin_and_end_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    held, seen = [100.0], threading.Event()

    def read_state(uuid: str) -> hardware.CardState:
        mib = held[0]
        if mib == 300.0:
            seen.set()
        return state(uuid, [GpuProcess(PID, mib)])

    monkeypatch.setattr(hardware, "read_state", read_state)
    with Watch(["GPU-a"]) as watch:
        held[0] = 300.0
        assert seen.wait(10)
        held[0] = 100.0
    assert watch.seen(PID)[0].peak_mib == 300.0


def test_a_card_that_is_lost_meanwhile_is_told_once_and_the_others_are_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [100.0]

    def read_state(uuid: str) -> hardware.CardState:
        if uuid == "GPU-a":
            raise hardware.HardwareError(f"{uuid}: the GPU is lost")
        return state(uuid, [GpuProcess(PID, held[0])])

    monkeypatch.setattr(hardware, "read_state", read_state)
    with Watch(["GPU-a", "GPU-b"]) as watch:
        held[0] = 300.0
    assert watch.unread == ("GPU-a: the GPU is lost",)
    assert [card.peak_mib for card in watch.seen(PID)] == [None, 300.0]


def test_clocks_are_medians_and_the_link_is_the_best_that_was_seen() -> None:
    samples = [
        state("GPU-a", [], graphics_mhz=300, pcie_generation=1, power_w=20.0, slowed_by=()),
        state("GPU-a", [], graphics_mhz=1700, pcie_generation=4, power_w=190.0, slowed_by=("power limit",)),
        state("GPU-a", [], graphics_mhz=1800, pcie_generation=4, power_w=150.0, slowed_by=("power limit", "heat")),
    ]
    found = summarise("GPU-a", samples, PID)
    assert (found.graphics_mhz, found.power_w, found.pcie_generation) == (1700.0, 190.0, 4)
    assert (found.peak_mib, found.slowed_by) == (0.0, ("power limit", "heat"))


def test_what_the_driver_does_not_tell_is_unknown() -> None:
    found = summarise("GPU-a", [state("GPU-a", [], graphics_mhz=None, temperature_c=None, pcie_width=None)], PID)
    assert (found.graphics_mhz, found.temperature_c, found.pcie_width) == (None, None, None)


def test_memory_that_the_driver_does_not_tell_is_unknown_and_not_nothing() -> None:
    assert summarise("GPU-a", [state("GPU-a", [GpuProcess(PID, None)])], PID).peak_mib is None
