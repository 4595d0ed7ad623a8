"""Arrival: a tier waits for its cards and for their memory, for a while, and says what is missing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import fake_tier
import pytest
from fake_host import Host, gpu, play

from checker import arrival, hardware, tier
from inventories import BIG, SMALL

CUDA = fake_tier.spec(
    devices=tuple(replace(each, rpc_endpoint=None, overhead_mib=100.0) for each in fake_tier.spec().devices)
)
CARDS = (gpu(BIG, 1), gpu(SMALL, 2))
NO_DRIVER = hardware.HardwareError("the NVIDIA kernel module is not loaded: modprobe nvidia")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(arrival, "_LOOK_S", 0.01)
    monkeypatch.setattr(arrival, "_POLL_S", 0.01)
    monkeypatch.setattr(arrival, "_UVM", "/dev/null")
    return play(monkeypatch)


def later(monkeypatch: pytest.MonkeyPatch, *answers: tuple[hardware.Gpu, ...] | hardware.HardwareError) -> list[int]:
    """Have NVML tell the answers one after the other, the last one from then on; return how many were asked for."""
    asked: list[int] = []

    def read() -> tuple[hardware.Gpu, ...]:
        asked.append(len(asked))
        answer = answers[min(len(asked), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(hardware, "read_gpus", read)
    return asked


def test_a_tier_whose_cards_are_there_and_free_starts_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = later(monkeypatch, CARDS)
    assert arrival.wait(CUDA) is None
    assert len(asked) == 1


@pytest.mark.parametrize(
    "late",
    [NO_DRIVER, (), CARDS[:1], hardware.GpuLostError((SMALL["uuid"],), CARDS[:1])],
    ids=["driver", "both", "one", "lost"],
)
def test_a_card_that_appears_late_is_waited_for(
    host: Host, monkeypatch: pytest.MonkeyPatch, late: tuple[hardware.Gpu, ...] | hardware.HardwareError
) -> None:
    asked = later(monkeypatch, late, late, late, CARDS)
    assert arrival.wait(CUDA, cards_s=60) is None
    assert len(asked) == 4


def test_a_card_that_is_gone_is_told_with_those_that_are_there(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    other = gpu({"name": "other", "uuid": "GPU-other"})
    later(monkeypatch, (CARDS[0], other))
    assert arrival.wait(CUDA, cards_s=0.05) == (
        f"deep: {SMALL['uuid']} is gone, found {BIG['uuid']}, GPU-other: plan again"
    )
    later(monkeypatch, ())
    assert arrival.wait(CUDA, cards_s=0) == f"deep: {BIG['uuid']}, {SMALL['uuid']} is gone, found no card: plan again"


def test_a_card_that_is_lost_is_not_called_gone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = hardware.GpuLostError((SMALL["uuid"],), CARDS[:1])
    later(monkeypatch, lost)
    assert arrival.wait(CUDA, cards_s=0.05) == f"deep: {lost}"
    later(monkeypatch, hardware.GpuLostError(("GPU-other",), CARDS))
    assert arrival.wait(CUDA) is None, "another tier's card"
    later(monkeypatch, hardware.GpuLostError(("GPU-other",), CARDS[:1]))
    assert "is gone, found" in str(arrival.wait(CUDA, cards_s=0.05))


@pytest.mark.parametrize("fault", ["absent", "closed to the sandbox"])
def test_cards_that_answer_without_unified_memory_are_no_devices_of_cuda(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    """NVML does not need that node. To one that comes after systemd has begun the start the sandbox stays closed."""
    node = tmp_path / ("nvidia-uvm" if fault == "absent" else ".")
    monkeypatch.setattr(arrival, "_UVM", str(node))
    asked = later(monkeypatch, CARDS)
    reason = arrival.wait(CUDA)
    assert reason is not None and reason.startswith(f"deep: {node} cannot be opened (")
    assert "CUDA finds no card without it" in reason
    assert len(asked) == 1, "there is nothing to wait for"
    assert arrival.wait(fake_tier.spec()) is None, "cards behind RPC servers"


def test_a_driver_that_stays_away_is_told_in_its_own_words(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, NO_DRIVER)
    began = time.monotonic()
    assert arrival.wait(CUDA, cards_s=0.1) == f"deep: {NO_DRIVER}"
    assert 0.1 <= time.monotonic() - began < 10


def full(**used_mib: float) -> tuple[hardware.Gpu, ...]:
    return tuple(
        replace(card, used_mib=int(used_mib.get(name, 0))) for name, card in zip(("big", "small"), CARDS, strict=True)
    )


def test_memory_that_becomes_free_is_waited_for(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rival that was just stopped still holds some."""
    asked = later(monkeypatch, full(big=8000), full(small=8100), full(big=7800, small=7800))
    assert arrival.wait(CUDA) is None
    assert len(asked) == 3
    assert capsys.readouterr().err == ""


def test_memory_that_never_becomes_free_is_said_and_tried_all_the_same(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    later(monkeypatch, full(big=8000))
    began = time.monotonic()
    assert arrival.wait(CUDA, memory_s=0.1) is None
    assert 0.1 <= time.monotonic() - began < 10
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"deep: {BIG['uuid']} has 192 MiB free, 346 are planned: something else holds memory")


def test_two_devices_on_one_card_need_their_sum(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    both = tuple(replace(device, uuid=BIG["uuid"]) for device in CUDA.devices)
    later(monkeypatch, full(big=7800))
    assert arrival.wait(CUDA, memory_s=0) is None
    said: list[str] = []
    monkeypatch.setattr("builtins.print", lambda line, **_: said.append(line))
    assert arrival.wait(replace(CUDA, devices=both), memory_s=0) is None
    assert "has 392 MiB free, 535 are planned" in said[0]


@pytest.mark.parametrize(("endpoint", "waits"), [("10.0.0.7:50052", False), ("127.0.0.1:50052", True)])
def test_a_card_of_another_host_is_not_looked_for(
    host: Host, monkeypatch: pytest.MonkeyPatch, endpoint: str, waits: bool
) -> None:
    far = replace(CUDA, devices=(replace(CUDA.devices[0], rpc_endpoint=endpoint), CUDA.devices[1]))
    later(monkeypatch, CARDS[1:])
    assert (arrival.wait(far, cards_s=0) is not None) == waits


def test_a_plan_that_knows_no_memory_waits_for_none(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = replace(CUDA, devices=tuple(replace(each, weights_mib=None) for each in CUDA.devices))
    later(monkeypatch, full(big=8192, small=8192))
    assert arrival.wait(unknown, memory_s=60) is None


def spoilt(error: hardware.HardwareError) -> Callable[[], tuple[hardware.Gpu, ...]]:
    def read() -> tuple[hardware.Gpu, ...]:
        raise error

    return read


def test_as_execstartpre_it_says_why_not(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = tier.load
    monkeypatch.setattr(tier, "load", lambda name: load(name, tmp_path))
    (tmp_path / "deep.json").write_text(json.dumps(CUDA.to_json()))
    host.gpus = CARDS
    assert arrival.main("deep") == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(arrival, "wait", partial(arrival.wait, cards_s=0))
    monkeypatch.setattr(hardware, "read_gpus", spoilt(NO_DRIVER))
    assert arrival.main("deep") == 1
    assert capsys.readouterr().err == f"not ready: deep: {NO_DRIVER}\n"
    assert arrival.main("fast") == 1
    assert capsys.readouterr().err.startswith("not ready: no tier 'fast' on this host")
