"""Others on a tier's cards: what a start wrote down of them, and who is there now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fake_tier
import pytest
from fake_host import PID, Host, gpu

from checker import arrival, hardware, others, tier
from checker.evidence import Holder
from checker.hardware import GpuProcess
from checker.measure import Depth, measure
from checker.verdict import judge
from inventories import BIG, SMALL


@pytest.fixture
def server(tmp_path: Path) -> Iterator[fake_tier.Server]:
    with fake_tier.serving(tmp_path) as played:
        played.counted_s = played.waits_s = 0.05
        yield played


@pytest.fixture
def specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: fake_tier.Server) -> Path:
    """Return the folder that holds the spec of tier `deep`."""
    load = tier.load
    monkeypatch.setattr(tier, "load", lambda name: load(name, tmp_path / "specs"))
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/deep.json").write_text(json.dumps(server.spec.to_json()))
    return tmp_path / "specs"


def start(host: Host, server: fake_tier.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the cards as systemd has the tier do before its server is there."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(server.socket.parent))
    loaded, host.held = host.held, {uuid: [p for p in held if p.pid != PID] for uuid, held in host.held.items()}
    assert arrival.main("deep") == 0
    host.held = loaded


def test_what_was_there_before_the_server_is_told_of_each_card_and_by_whom(
    host: Host, server: fake_tier.Server, specs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(host, server, monkeypatch)
    host.held[BIG["uuid"]] = [GpuProcess(PID, 262.5), GpuProcess(815, 300.0)]
    host.held[SMALL["uuid"]] += [GpuProcess(12, 7.0), GpuProcess(12, None)]
    host.names[815] = ("Xorg", "")
    big, small = measure(server.spec, [], Depth.QUICK, None).devices
    assert (big.before_mib, small.before_mib) == (1400.0, 1400.0)
    assert big.others == (Holder(12, "ollama", "ollama.service", 0.0, 1000.0), Holder(815, "Xorg", "", 300.0, 0.0))
    assert small.others == (Holder(12, "ollama", "ollama.service", None, 0.0),)


def test_by_hand_nothing_is_written_down(
    host: Host, server: fake_tier.Server, specs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert arrival.main("deep") == 0
    assert [each.before_mib for each in others.around(server.spec, PID).values()] == [None, None]


@pytest.mark.parametrize("fault", ["a card that is lost", "no folder"])
def test_what_cannot_be_written_down_is_said_and_keeps_no_tier_from_its_start(
    host: Host,
    server: fake_tier.Server,
    specs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    def lost(uuid: str) -> hardware.CardState:
        raise hardware.HardwareError(f"{uuid}: the GPU is lost")

    monkeypatch.setenv("RUNTIME_DIRECTORY", str(server.socket.parent / "absent"))
    if fault == "a card that is lost":
        monkeypatch.setattr(hardware, "read_state", lost)
    assert arrival.main("deep") == 0
    assert capsys.readouterr().err.startswith("deep: what its cards hold before the load is not known: ")


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "\xff",
        "5",
        "null",
        "[]",
        "[" * 100_000,
        *(
            json.dumps({BIG["uuid"]: card})
            for card in (
                {},
                None,
                [],
                {"used_mib": 5},
                {"used_mib": 5, "processes": [12]},
                {"used_mib": "much", "processes": {}},
                {"used_mib": None, "processes": {}},
                {"used_mib": float("nan"), "processes": {}},
                {"used_mib": 10**400, "processes": {}},
                {"used_mib": 5, "processes": {"one": 5}},
                {"used_mib": 5, "processes": {"12": {}}},
                {"used_mib": 5, "processes": {"12": float("inf")}},
            )
        ),
    ],
    ids=lambda damage: damage[:60] or "empty",
)
def test_a_note_that_is_damaged_tells_nothing(
    host: Host, server: fake_tier.Server, specs: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    start(host, server, monkeypatch)
    (server.socket.parent / "before.json").write_text(damage, encoding="latin-1")
    assert [each.before_mib for each in others.around(server.spec, PID).values()] == [None, None]


def test_of_a_card_that_is_lost_what_was_before_is_known_all_the_same(
    host: Host, server: fake_tier.Server, specs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(uuid: str) -> tuple[GpuProcess, ...]:
        raise hardware.HardwareError(f"{uuid}: the GPU is lost")

    start(host, server, monkeypatch)
    monkeypatch.setattr(hardware, "processes", lost)
    assert others.around(server.spec, PID) == dict.fromkeys(
        (BIG["uuid"], SMALL["uuid"]), others.Others(before_mib=1400.0, holders=())
    )


@pytest.mark.parametrize("came", [True, False])
def test_memory_that_was_pushed_off_a_card_is_told_with_who_came_there(
    host: Host, server: fake_tier.Server, specs: Path, monkeypatch: pytest.MonkeyPatch, came: bool
) -> None:
    """The process holds less than the engine logged."""
    start(host, server, monkeypatch)
    host.held[BIG["uuid"]] = [GpuProcess(PID, 200.0), GpuProcess(12, 1000.0)]
    if came:
        host.held[BIG["uuid"]].append(GpuProcess(815, 600.0))
        host.gpus = (replace(gpu(BIG), used_mib=2200), gpu(SMALL))
    host.names[815] = ("Xorg", "display-manager.service")
    reasons = judge(server.spec, measure(server.spec, [], Depth.QUICK, None)).reasons
    (said,) = [reason for reason in reasons if "the driver has moved memory off the card" in reason]
    filled = "others hold 2,000.0 MiB of it, 1,400.0 MiB were in use before it was started: "
    assert (filled + "Xorg (pid 815, display-manager.service) 600.0 MiB" in said) == came, said
    assert ("were in use before" in said) == came
