"""Readiness: "active" means that the right model answers from its own cards; anything else is told in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import fake_tier
import pytest

from checker import hardware, readiness, tier
from inventories import BIG, SMALL

PID = os.getpid()
STRAY = hardware.Gpu("GeForce 7", "GPU-stray", "00000000:03:00.0", "8.6", 8192, 400, None, None)
OWN = tuple(
    hardware.Gpu(card["name"], card["uuid"], "00000000:01:00.0", "8.6", 8192, 400, None, None) for card in (BIG, SMALL)
)
NO_NVML = hardware.HardwareError("no permission to use the NVIDIA driver")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_tier.Server]:
    """Serve tier `deep`, whose spec is on the host."""
    load = tier.load
    monkeypatch.setattr(tier, "load", lambda name: load(name, tmp_path))
    monkeypatch.setattr(readiness, "_POLL_S", 0.01)
    with fake_tier.serving(tmp_path) as played:
        played.waits_s = 0
        write(tmp_path, played.spec)
        yield played


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return MiB by UUID that this process holds on each card, for a test to change; another holds some on each."""
    mib = {BIG["uuid"]: 262.0, SMALL["uuid"]: 93.0, STRAY.uuid: 0.0}
    monkeypatch.setattr(
        hardware, "processes", lambda uuid: (hardware.GpuProcess(1, 500.0), hardware.GpuProcess(PID, mib[uuid]))
    )
    monkeypatch.setattr(hardware, "opened", nullcontext)
    monkeypatch.setattr(hardware, "read_gpus", lambda: (*OWN, STRAY))
    return mib


def write(directory: Path, spec: tier.TierSpec) -> None:
    (directory / f"{spec.name}.json").write_text(json.dumps(spec.to_json()))


def fails(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_it_becomes_ready_once_the_model_is_loaded(server: fake_tier.Server) -> None:
    server.loading_answers = 3
    assert readiness.ready("deep", PID) is None
    asked = [path for path, _ in server.asked]
    assert asked[:4] == ["/health"] * 4
    assert asked[-1] == "/completion", "the model has to compute, not only to be loaded"


def test_since_when_it_is_ready_is_left_for_who_has_it_give_way(server: fake_tier.Server) -> None:
    began = time.monotonic()
    assert readiness.ready("deep", PID) is None
    assert began < float(server.spec.ready_file.read_text()) < time.monotonic()
    assert server.spec.ready_file.stat().st_mode & 0o777 == 0o640
    server.spec.ready_file.unlink()
    server.props["model_alias"] = "another"
    assert readiness.ready("deep", PID) is not None
    assert not server.spec.ready_file.exists(), "it never was"


GONE = "llama-server ended before it was ready: journalctl -u llama-tier-deep.service says why"


def short_lived() -> int:
    """Return the id of a process that ends in a moment."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.1)"])
    # As systemd does: a process that nobody waited for still has its id.
    threading.Thread(target=process.wait, daemon=True).start()
    return process.pid


def test_a_process_that_ends_while_it_loads_is_told(server: fake_tier.Server) -> None:
    server.loading_answers = 10**6
    assert readiness.ready("deep", short_lived()) == GONE
    assert server.asked.count(("/health", {})) > 1


def test_a_process_that_ends_before_it_listens_is_told(server: fake_tier.Server) -> None:
    server.socket.unlink()
    assert readiness.ready("deep", short_lived()) == GONE


def test_an_answer_of_another_process_does_not_make_a_dead_server_ready(server: fake_tier.Server) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert readiness.ready("deep", process.pid) == GONE


def test_a_server_of_another_user_is_alive(server: fake_tier.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", fails(PermissionError()))
    assert readiness.ready("deep", PID) is None


def test_a_wrong_model_and_a_wrong_context_are_told_together(server: fake_tier.Server) -> None:
    server.props["model_path"] = "/models/other.gguf"
    server.props["default_generation_settings"] = {"n_ctx": 2048}
    reason = str(readiness.ready("deep", PID))
    assert "deep: serves /models/other.gguf instead of" in reason
    assert "deep: serves a context of 2048 tokens, 4096 were promised" in reason
    assert "\n" not in reason


@pytest.mark.parametrize(("mib", "said"), [(0.0, "holds nothing"), (49.0, "holds 49.0 MiB")])
def test_missing_memory_is_not_ready_although_health_is_good(
    server: fake_tier.Server, held: dict[str, float], mib: float, said: str
) -> None:
    held[SMALL["uuid"]] = mib
    assert str(readiness.ready("deep", PID)).startswith(f"deep: {said} on {SMALL['uuid']} ({SMALL['name']})")


def test_memory_counts_that_comes_with_the_first_token(
    server: fake_tier.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def processes(uuid: str) -> tuple[hardware.GpuProcess, ...]:
        answered = any(path == "/completion" for path, _ in server.asked)
        return (hardware.GpuProcess(PID, 262.0),) if answered and uuid != STRAY.uuid else ()

    monkeypatch.setattr(hardware, "processes", processes)
    assert readiness.ready("deep", PID) is None


def test_memory_on_a_card_that_is_not_its_own_is_told(server: fake_tier.Server, held: dict[str, float]) -> None:
    held[STRAY.uuid] = 300.0
    assert readiness.ready("deep", PID) == (
        "deep: holds 300.0 MiB on GPU-stray (GeForce 7), which is not its own: "
        "check --device and DeviceAllow of llama-tier-deep.service"
    )


@pytest.mark.parametrize("error", [NO_NVML, hardware.GpuLostError((STRAY.uuid,), OWN)], ids=["hidden", "lost"])
def test_a_foreign_card_that_cannot_be_read_holds_nothing_up(
    server: fake_tier.Server, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(hardware, "read_gpus", fails(error))
    assert readiness.ready("deep", PID) is None


def test_an_own_card_that_cannot_be_read_is_not_ready(
    server: fake_tier.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "processes", fails(NO_NVML))
    assert readiness.ready("deep", PID) == str(NO_NVML)


def test_a_key_that_cannot_be_read_is_told(server: fake_tier.Server, tmp_path: Path) -> None:
    write(tmp_path, replace(server.spec, key_file=str(tmp_path / "absent")))
    assert f"key file {tmp_path / 'absent'} cannot be read" in str(readiness.ready("deep", PID))


def test_a_server_that_answers_with_errors_is_told(server: fake_tier.Server) -> None:
    server.health_status = 500
    assert "/health answers 500" in str(readiness.ready("deep", PID))
    server.health_status = 200
    server.completion_status = 500
    assert "/completion answers 500" in str(readiness.ready("deep", PID))


def test_a_tier_that_is_not_on_the_host_names_those_that_are(server: fake_tier.Server) -> None:
    assert "no tier 'fast' on this host" in str(readiness.ready("fast", PID))
    assert "tiers here: deep" in str(readiness.ready("fast", PID))


def test_main_says_nothing_when_it_is_ready(
    server: fake_tier.Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAINPID", str(PID))
    assert readiness.main("deep") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("mainpid", [None, "", "0"])
def test_main_without_a_main_process_says_what_to_use_by_hand(
    server: fake_tier.Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mainpid: str | None,
) -> None:
    monkeypatch.delenv("MAINPID", raising=False)
    if mainpid is not None:
        monkeypatch.setenv("MAINPID", mainpid)
    assert readiness.main("deep") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("not ready: MAINPID is not set")
    assert "checker verify" in printed.err
    assert server.asked == []
