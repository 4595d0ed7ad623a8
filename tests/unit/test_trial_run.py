"""Trials on a host whose systemd is played: what is stopped, measured, taken away, recorded, and started again."""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fake_tier
import pytest
from decision_cases import measured

from checker import activation, measure, proven, restoring, systemd, tier, trial, trial_run
from checker.trial import Trial

CANDIDATE = "llama-tier-trial.service"
TARGET = "llama-tiers.target"
# fast is pinned; deep is loaded by its requests, and was not asked for yet.
SERVING = (TARGET, "llama-tier-fast.service", "llama-tier-fast.socket", "llama-tier-deep.socket")
RECORD = measured("auto")
OVER = threading.Event()
OVER.set()


@dataclass
class Played:
    """systemd of a host: which units are active, what was asked of it, and which candidates do what."""

    root: Path
    active: set[str] = field(default_factory=lambda: set(SERVING))
    asked: list[str] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    slow: dict[str, threading.Event] = field(default_factory=dict)
    does_not_stop: bool = False
    goes_down: bool = False
    connected: list[str] = field(default_factory=list)
    does_not_start: set[str] = field(default_factory=set)
    killed_while_measured: bool = False
    seen: list[dict[str, Any]] = field(default_factory=list)

    @property
    def unit_file(self) -> Path:
        return self.root / "units" / CANDIDATE

    def stop(self, *units: str) -> None:
        if CANDIDATE in units and not self.unit_file.exists():
            raise systemd.SystemdError(f"Unit {CANDIDATE} not loaded.")
        if CANDIDATE in units and self.does_not_stop:
            raise systemd.SystemdError(f"systemctl stop {CANDIDATE}: no answer within 240 s")
        for unit in units:
            self.asked.append(f"stop {unit}")
            self.active.discard(unit)

    def start(self, unit: str, _: float = 0) -> None:
        self.asked.append(f"start {unit}")
        unit = unit.removesuffix(" alone")
        if self.goes_down:
            raise systemd.SystemdError(f"Failed to start {unit}: Transaction for {unit}/start is destructive")
        assert self.slow.get(unit, OVER).wait(5)
        if unit in self.broken:
            self.failed.add(unit)
            raise systemd.SystemdError(f"systemctl start {unit} failed")
        self.active.add(unit)

    def connect(self, address: tuple[str, int], timeout: float) -> Any:
        (name,) = [spec.name for spec in tier.load_all(self.root / "tiers") if spec.port == address[1]]
        assert f"llama-tier-{name}.socket" in self.active
        self.connected.append(name)
        return io.BytesIO()

    def bring_up(self, spec: tier.TierSpec, report: Any) -> str | None:
        """Start the candidate as it lies on the host."""
        laid_out = tier.load("trial", self.root / "tiers")
        self.seen.append({"unit": self.unit_file.read_text(), "spec": laid_out, "beside": sorted(self.active)})
        self.asked.append(f"try {laid_out.model.name}")
        if laid_out.model.name in self.does_not_start:
            return "cudaMalloc failed: out of memory"
        self.active.add(CANDIDATE)
        return None

    def measure(self, spec: tier.TierSpec, *_: Any) -> Any:
        if self.killed_while_measured:
            self.active.discard(CANDIDATE)
        assert RECORD.evidence
        return replace(RECORD.evidence, tier=spec.name, problems=("no answer",) if self.killed_while_measured else ())

    def state(self, unit: str) -> systemd.UnitState:
        word = (
            "activating"
            if unit in self.waiting
            else "active"
            if unit in self.active
            else "failed"
            if unit in self.failed
            else "inactive"
        )
        return systemd.UnitState(word, "running", 1, "0" * 32, "success", 1, 2)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played(tmp_path)
    (tmp_path / "tiers").mkdir()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / TARGET).touch()
    for name, port, residency, rival in (("fast", 8080, "pinned", "deep"), ("deep", 8081, "on_demand", "fast")):
        spec = fake_tier.spec("/key", name=name, port=port, residency=residency, rivals=(rival,))
        (tmp_path / f"tiers/{name}.json").write_text(json.dumps(spec.to_json()))
        for unit in (tier.unit_of(name), *tier.Front(name).units):
            (tmp_path / "etc" / unit).touch()
    load = tier.load
    monkeypatch.setattr(trial_run, "DIRECTORY", tmp_path / "trial")
    monkeypatch.setattr(trial_run, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(trial_run, "LEASE", tmp_path / "lease")
    monkeypatch.setattr(trial_run, "PROGRESS", tmp_path / "progress")
    monkeypatch.setattr(restoring, "UNITS", tmp_path / "units")
    monkeypatch.setattr(restoring, "BEFORE", tmp_path / "trial/before.json")
    monkeypatch.setattr(socket, "create_connection", played.connect)
    monkeypatch.setattr(proven, "UNITS", tmp_path / "etc")
    monkeypatch.setattr(tier, "DIRECTORY", tmp_path / "tiers")
    monkeypatch.setattr(tier, "load", lambda name, directory=tmp_path / "tiers": load(name, directory))
    monkeypatch.setattr(activation, "_LOCK", tmp_path / "lock")
    monkeypatch.setattr(activation, "start", played.bring_up)
    monkeypatch.setattr(measure, "measure", played.measure)
    monkeypatch.setattr(systemd, "stop", played.stop)
    monkeypatch.setattr(systemd, "start", played.start)
    monkeypatch.setattr(systemd, "restart", lambda unit: played.asked.append(f"restart {unit}"))
    monkeypatch.setattr(systemd, "unit_state", played.state)
    monkeypatch.setattr(systemd, "start_alone", lambda unit: played.start(f"{unit} alone"))
    monkeypatch.setattr(systemd, "is_active", lambda unit: unit in played.active)
    monkeypatch.setattr(systemd, "active_units", lambda pattern: sorted(fnmatch.filter(played.active, pattern)))
    monkeypatch.setattr(systemd, "reset_failed", lambda unit: None)
    monkeypatch.setattr(systemd, "daemon_reload", lambda: played.asked.append("reload"))
    (tmp_path / "lease").touch()
    return played


def candidate(host: Played, name: str, **changes: Any) -> dict[str, Any]:
    """Return a candidate as the role hands it over, whose model lies on the host."""
    file = host.root / f"{name}.gguf"
    file.write_text("GGUF")
    spec = RECORD.spec
    assert spec
    spec = replace(spec, name="trial", model=replace(spec.model, name=name, file=str(file)))
    whole = {
        "tier": "deep",
        "model": name,
        "placement": "auto",
        "label": f"{name} (auto)",
        "fingerprint": trial.other_fingerprint(name),
        "asked": trial.other_fingerprint("asked", name),
        "spec": spec.to_json(),
        "outcome": None,
        "reason": None,
        "unit": f"[Service]\nExecStart={name}\n",
    }
    return {**whole, **changes}


def without_room(host: Played, name: str) -> dict[str, Any]:
    """Return that candidate as one that has no room."""
    fingerprint = trial.other_fingerprint("asked", name)
    reason = "GTX 1060 3GB needs 3,144 MiB"
    return candidate(host, name, spec=None, fingerprint=fingerprint, outcome="infeasible", reason=reason)


def unfetched(host: Played, name: str) -> dict[str, Any]:
    """Return that candidate as one whose model could not be fetched."""
    return candidate(host, name, spec=None, outcome="failed", reason="its model could not be fetched: 404")


def run(host: Played, *candidates: dict[str, Any], depth: str = "whole") -> list[str]:
    """Run a job; return what it reported."""
    said: list[str] = []
    trial_run.DIRECTORY.mkdir(exist_ok=True)
    job = {"host": "tower", "depth": depth, "limit_s": 600, "candidates": candidates}
    (trial_run.DIRECTORY / "job.json").write_text(json.dumps(job))
    trial_run.run(said.append)
    return said


def wait_until(seen: Callable[[], bool]) -> None:
    for _ in range(500):
        if seen():
            return
        time.sleep(0.01)
    raise AssertionError("it is never seen")


def records() -> dict[str, Trial]:
    return {document["model"]: trial.from_json(document) for document in trial_run.kept()}


def test_what_was_served_over_tls_is_so_again(host: Played) -> None:
    over_tls = tier.Front("fast").tls
    (host.root / "etc" / over_tls).touch()
    host.active.add(over_tls)
    run(host, candidate(host, "one"))
    trial_run.restore()
    assert f"start {over_tls}" in host.asked


def test_each_candidate_runs_alone_with_the_tiers_unit_and_is_recorded(host: Played) -> None:
    run(host, candidate(host, "one"), candidate(host, "two"))
    assert [seen["unit"] for seen in host.seen] == ["[Service]\nExecStart=one\n", "[Service]\nExecStart=two\n"]
    assert [seen["beside"] for seen in host.seen] == [[], []]
    kept = records()
    assert {name: record.outcome for name, record in kept.items()} == {"one": "measured", "two": "measured"}
    one = kept["one"]
    assert (one.host, one.tier, one.reason) == ("tower", "deep", None)
    assert one.spec and one.spec.name == "deep" and one.spec.model.name == "one"
    assert one.evidence and one.evidence.tier == "deep"


def test_what_serves_is_stopped_once_and_nothing_of_a_candidate_stays(host: Played) -> None:
    run(host, candidate(host, "one"), candidate(host, "two"))
    # What is pinned would come back with the target.
    assert host.asked[0] == f"stop {TARGET}" and host.asked.count(host.asked[0]) == 1
    assert all(asked.endswith(f" {CANDIDATE}") for asked in host.asked[host.asked.index("reload") :] if "stop" in asked)
    assert not host.unit_file.exists()
    assert not host.unit_file.with_name(f"{CANDIDATE}.d").exists()
    assert not (host.root / "tiers/trial.json").exists()
    assert CANDIDATE not in host.active


def test_what_served_serves_again(host: Played) -> None:
    before = set(host.active)
    run(host, candidate(host, "one"))
    assert host.active == set()
    trial_run.restore()
    assert host.active == before
    asked = len(host.asked)
    trial_run.restore()
    assert len(host.asked) == asked


def test_ports_are_open_again_when_what_served_serves(host: Played) -> None:
    run(host, candidate(host, "one"))
    del host.asked[:]
    trial_run.restore()
    assert set(host.asked[:2]) == {f"start {TARGET} alone", "start llama-tier-fast.service"}
    assert set(host.asked[2:]) == {"start llama-tier-deep.socket", "start llama-tier-fast.socket"}


def test_a_tier_that_is_slow_to_load_keeps_no_others_port_closed(host: Played) -> None:
    # Neither is in the other's way.
    for name in ("fast", "deep"):
        file = host.root / f"tiers/{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"rivals": []}))
    host.active |= {"llama-tier-deep.service"}
    before = set(host.active)
    run(host, candidate(host, "one"))
    host.slow["llama-tier-deep.service"] = threading.Event()
    restoring_it = threading.Thread(target=trial_run.restore)
    restoring_it.start()
    try:
        wait_until(lambda: "llama-tier-fast.socket" in host.active)
        assert host.active == before - {"llama-tier-deep.service", "llama-tier-deep.socket"}
    finally:
        host.slow["llama-tier-deep.service"].set()
        restoring_it.join()
    assert host.active == before


@pytest.mark.parametrize(
    ("port", "waits"),
    [
        ("llama-tier-fast.socket", {"llama-tier-fast.service"}),
        # A request there would stop fast.
        ("llama-tier-deep.socket", {"llama-tier-fast.service"}),
        ("llama-tier-wide.socket", {"llama-tier-wide.service"}),
        ("llama-tier-deep-fallback.socket", {TARGET, "llama-tier-fast.service", "llama-tier-wide.service"}),
    ],
)
def test_a_port_waits_for_its_tier_and_whom_a_request_would_stop(port: str, waits: set[str]) -> None:
    loads = [TARGET, "llama-tier-fast.service", "llama-tier-wide.service"]
    rivals = {"fast": ("deep",), "deep": ("fast",), "wide": ()}
    assert restoring.waits_for(port, loads, rivals) == waits


def test_only_what_served_serves_again(host: Played) -> None:
    # deep was asked for and took the place of fast, whose port an operator has closed.
    served = {TARGET, "llama-tier-deep.service", "llama-tier-deep.socket"}
    host.active = {*served, "llama-tier-deep-proxy.service"}
    run(host, candidate(host, "one"))
    assert host.active == set()
    trial_run.restore()
    assert host.active == served
    # It counts the time after which fast comes back from when a connection ends.
    assert host.connected == ["deep"]


def test_a_tier_on_demand_that_was_not_loaded_is_not_asked(host: Played) -> None:
    run(host, candidate(host, "one"))
    trial_run.restore()
    assert host.connected == []


def test_a_tier_that_has_failed_is_found_as_it_was(host: Played) -> None:
    before = {TARGET, "llama-tier-fast-cooldown.service", "llama-tier-fast-fallback.socket", "llama-tier-deep.socket"}
    host.active = {*before, "llama-tier-fast-fallback.service"}
    run(host, candidate(host, "one"))
    assert host.active == set()
    trial_run.restore()
    assert host.active == before


def test_nobody_waits_for_a_tier_that_waited_itself(host: Played) -> None:
    host.waiting = {"llama-tier-fast.service"}
    run(host, candidate(host, "one"))
    del host.asked[:]
    trial_run.restore()
    assert "restart llama-tier-fast.service" in host.asked and "start llama-tier-fast.service" not in host.asked
    assert {"llama-tier-fast.socket", "llama-tier-deep.socket"} <= host.active
    assert not restoring.is_due()


def test_a_host_whose_tiers_are_all_stopped_stays_so(host: Played) -> None:
    host.active = set()
    run(host, candidate(host, "one"))
    trial_run.restore()
    assert host.active == set()


def test_what_a_checker_of_before_has_stopped_serves_again(host: Played) -> None:
    host.active = set()
    restoring.BEFORE.parent.mkdir()
    restoring.BEFORE.write_text(json.dumps({"units": SERVING}))
    trial_run.restore()
    assert host.active == {*SERVING}


def test_a_candidate_that_is_cut_off_is_taken_away_by_restore(host: Played) -> None:
    before = set(host.active)
    run(host, candidate(host, "one"))
    # As a kill between start and end leaves it.
    host.active = {CANDIDATE}
    host.unit_file.write_text("[Service]\n")
    (host.root / "tiers/trial.json").write_text("{}")
    trial_run.restore()
    assert host.active == before
    assert not host.unit_file.exists() and not (host.root / "tiers/trial.json").exists()


def test_a_candidate_that_a_boot_has_cut_off_is_taken_away(host: Played) -> None:
    before = set(host.active)
    run(host, candidate(host, "one"))
    # Of its files the spec alone is not in /run.
    (host.root / "tiers/trial.json").write_text("{}")
    trial_run.restore()
    assert host.active == before
    assert not (host.root / "tiers/trial.json").exists()


def test_what_does_not_start_again_is_named_and_the_rest_serves(host: Played) -> None:
    run(host, candidate(host, "one"))
    host.broken = {"llama-tier-fast.service"}
    with pytest.raises(systemd.SystemdError, match=r"what served before does not start again: .*llama-tier-fast"):
        trial_run.restore()
    assert host.active == {*SERVING} - host.broken
    # Its cooldown tries it again.
    assert not restoring.is_due()


def test_what_a_shutdown_refuses_is_started_after_the_boot(host: Played) -> None:
    host.active |= {"llama-tier-deep.service"}
    before = set(host.active)
    run(host, candidate(host, "one"))
    host.goes_down = True
    with pytest.raises(systemd.SystemdError, match="is destructive"):
        trial_run.restore()
    host.goes_down = False
    trial_run.restore()
    assert host.active == before
    assert not restoring.is_due()


def test_another_try_starts_only_what_the_one_before_could_not(host: Played) -> None:
    run(host, candidate(host, "one"))
    host.broken = {"llama-tier-fast.socket"}
    with pytest.raises(systemd.SystemdError):
        trial_run.restore()
    host.broken.clear()
    # Somebody asked for the other tier meanwhile.
    host.active -= {"llama-tier-fast.service"}
    trial_run.restore()
    assert "llama-tier-fast.socket" in host.active and "llama-tier-fast.service" not in host.active


def test_a_candidate_that_does_not_go_keeps_nobody_down_and_is_tried_again(host: Played) -> None:
    before = set(host.active)
    run(host, candidate(host, "one"))
    host.unit_file.write_text("[Service]\n")
    host.does_not_stop = True
    with pytest.raises(systemd.SystemdError, match=r"the candidate is not taken away: .*no answer within 240 s"):
        trial_run.restore()
    assert host.active == before
    assert restoring.is_due()
    host.does_not_stop = False
    trial_run.restore()
    assert not host.unit_file.exists() and not restoring.is_due()


def test_a_disk_that_cannot_be_written_keeps_nobody_down(host: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(host.active)
    run(host, candidate(host, "one"))
    (host.root / "tiers/trial.json").write_text("{}")

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", refuse)
        broken.setattr(Path, "replace", refuse)
        with pytest.raises(systemd.SystemdError, match="Read-only file system"):
            trial_run.restore()
    assert host.active == before
    trial_run.restore()
    assert host.active == before and not restoring.is_due()


def test_what_was_removed_meanwhile_does_not_come_back(host: Played) -> None:
    run(host, candidate(host, "one"))
    for unit in (host.root / "etc").glob("llama-tier-deep*"):
        unit.unlink()
    trial_run.restore()
    assert host.active == {*SERVING} - {"llama-tier-deep.socket"}


def test_nothing_is_started_while_somebody_else_starts_and_stops_tiers(host: Played) -> None:
    run(host, candidate(host, "one"))
    restoring_it = threading.Thread(target=trial_run.restore)
    with (host.root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        restoring_it.start()
        time.sleep(0.1)
        assert host.active == set()
    restoring_it.join()
    assert host.active == {*SERVING}


def test_one_that_does_not_start_is_a_record_and_the_next_is_tried(host: Played) -> None:
    host.does_not_start = {"one"}
    run(host, candidate(host, "one"), candidate(host, "two"))
    kept = records()
    assert (kept["one"].outcome, kept["one"].reason) == ("failed", "it did not start: cudaMalloc failed: out of memory")
    assert kept["one"].spec and kept["one"].evidence is None
    assert kept["two"].outcome == "measured"


def test_one_that_is_not_done_in_its_time_has_failed(host: Played) -> None:
    host.killed_while_measured = True
    run(host, candidate(host, "one"))
    one = records()["one"]
    assert one.outcome == "failed"
    assert one.reason == "it stopped serving while it was measured, or was not done after 600 s: no answer"


def test_the_time_of_a_candidate_is_bounded_by_its_tier_and_the_limit(
    host: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[str] = []
    plain = host.bring_up

    def look(spec: tier.TierSpec, report: Any) -> str | None:
        limits.append((host.root / f"units/{CANDIDATE}.d/trial.conf").read_text())
        return plain(spec, report)

    monkeypatch.setattr(activation, "start", look)
    run(host, candidate(host, "one"))
    assert "TimeoutStartSec=135\n" in limits[0] and "RuntimeMaxSec=600\n" in limits[0]


def test_what_has_no_room_or_no_file_is_recorded_and_stops_nobody(host: Played) -> None:
    none = candidate(host, "none", spec=None, outcome="infeasible", reason="GTX 1060 3GB needs 3,144 MiB")
    unfetched = candidate(host, "unfetched", spec=None, outcome="failed", reason="its model could not be fetched: full")
    gone = candidate(host, "gone")
    (host.root / "gone.gguf").unlink()
    run(host, none, unfetched, gone)
    assert host.asked == []
    said = {name: (record.outcome, record.reason) for name, record in records().items()}
    assert said["none"] == ("infeasible", "GTX 1060 3GB needs 3,144 MiB")
    assert said["unfetched"] == ("failed", "its model could not be fetched: full")
    assert said["gone"] == ("failed", f"its file is not on the host ({host.root / 'gone.gguf'})")


def test_progress_says_which_of_how_many_and_how_long_still(host: Played) -> None:
    said = run(host, candidate(host, "one"), candidate(host, "two"))
    assert said[0] == "waiting for whoever starts and stops tiers"
    assert said[1] == "candidate 1 of 2, deep: one (auto): stopping what serves; at most 20 min left"
    assert "candidate 2 of 2, deep: two (auto): measuring; about 0 s left" in said


def test_a_record_of_the_same_measurement_is_replaced(host: Played) -> None:
    run(host, candidate(host, "one"))
    run(host, candidate(host, "one"))
    assert len(list((host.root / "records").glob("*.json"))) == 1


def test_what_was_measured_is_not_replaced_by_what_could_not_be(host: Played) -> None:
    run(host, candidate(host, "one"))
    host.does_not_start = {"one"}
    run(host, candidate(host, "one"))
    assert records()["one"].outcome == "measured"
    run(host, candidate(host, "one", spec=None, outcome="failed", reason="its model could not be fetched: 404"))
    assert records()["one"].outcome == "measured"


def test_what_fails_while_it_is_measured_replaces_what_was_measured(host: Played) -> None:
    run(host, candidate(host, "one"), depth="quick")
    host.killed_while_measured = True
    run(host, candidate(host, "one"))
    (document,) = trial_run.kept()
    assert document["outcome"] == "failed"
    assert document["reason"].startswith("it stopped serving while it was measured")
    assert trial.is_answer(document, {"load_s": 120, "measure_s": 600, "depth": "whole"})


def test_what_nobody_can_ask_for_after_its_measurement_has_run_all_the_same(
    host: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(host, candidate(host, "one"), depth="quick")
    measure, state = trial_run.measure.measure, trial_run.systemd.unit_state

    def and_then_systemd_is_silent(spec: tier.TierSpec, *arguments: Any) -> Any:
        found = measure(spec, *arguments)

        def silent_once(unit: str) -> Any:
            monkeypatch.setattr(trial_run.systemd, "unit_state", state)
            raise systemd.SystemdError("systemctl show: no answer within 10 s")

        monkeypatch.setattr(trial_run.systemd, "unit_state", silent_once)
        return found

    monkeypatch.setattr(trial_run.measure, "measure", and_then_systemd_is_silent)
    run(host, candidate(host, "one"))
    (document,) = trial_run.kept()
    assert (document["outcome"], document["reason"]) == ("failed", "systemctl show: no answer within 10 s")


def test_what_hangs_when_it_is_tried_again_is_measured_no_longer(host: Played) -> None:
    run(host, candidate(host, "one"))
    host.killed_while_measured = True
    run(host, candidate(host, "one"))
    assert records()["one"].outcome == "failed"


def test_what_did_not_start_is_not_replaced_by_what_could_not_be_fetched_or_found(host: Played) -> None:
    host.does_not_start = {"one"}
    run(host, candidate(host, "one"))
    before = trial_run.kept()
    run(host, unfetched(host, "one"))
    assert trial_run.kept() == before
    gone = candidate(host, "one")
    (host.root / "one.gguf").unlink()
    run(host, gone)
    assert trial_run.kept() == before


def test_what_could_not_be_fetched_is_replaced_by_whatever_comes_after_it(host: Played) -> None:
    run(host, unfetched(host, "one"))
    gone = candidate(host, "one")
    (host.root / "one.gguf").unlink()
    run(host, gone)
    assert records()["one"].reason == f"its file is not on the host ({host.root / 'one.gguf'})"
    host.does_not_start = {"one"}
    run(host, candidate(host, "one"))
    assert records()["one"].reason == "it did not start: cudaMalloc failed: out of memory"


def test_what_failed_is_replaced_by_what_failed_with_other_limits(host: Played) -> None:
    host.killed_while_measured = True
    run(host, candidate(host, "one"), depth="quick")
    host.does_not_start = {"one"}
    run(host, candidate(host, "one"))
    one = records()["one"]
    assert one.limits and (one.limits["depth"], one.reason) == (
        "whole",
        "it did not start: cudaMalloc failed: out of memory",
    )


@pytest.mark.parametrize("fetched", [True, False])
def test_what_has_room_again_is_without_room_no_longer_whatever_comes_of_it(host: Played, fetched: bool) -> None:
    run(host, candidate(host, "one"))
    (measured_before,) = trial_run.kept()
    run(host, without_room(host, "one"))
    host.does_not_start = {"one"}
    run(host, candidate(host, "one") if fetched else unfetched(host, "one"))
    kept = {document["fingerprint"]: document for document in trial_run.kept()}
    assert kept.pop(measured_before["fingerprint"]) == measured_before
    ((fingerprint, other),) = kept.items()
    assert fingerprint == trial.other_fingerprint("asked", "one")
    assert (other["outcome"], other["spec"]) == ("failed", None)
    assert "did not start" in other["reason"] if fetched else "404" in other["reason"]


def test_what_could_not_be_started_leaves_one_record_where_it_always_had_room(host: Played) -> None:
    run(host, candidate(host, "one"))
    host.does_not_start = {"one"}
    run(host, candidate(host, "one"))
    assert len(trial_run.kept()) == 1


def test_what_has_no_room_once_more_is_recorded_so(host: Played) -> None:
    run(host, candidate(host, "one"))
    run(host, without_room(host, "one"))
    run(host, unfetched(host, "one"))
    run(host, without_room(host, "one"))
    assert sorted(document["outcome"] for document in trial_run.kept()) == ["infeasible", "measured"]
    run(host, candidate(host, "one"))
    assert [document["outcome"] for document in trial_run.kept()] == ["measured"]


def test_what_was_measured_is_kept_although_the_candidate_does_not_stop(host: Played) -> None:
    host.does_not_stop = True
    with pytest.raises(systemd.SystemdError, match="no answer within 240 s"):
        run(host, candidate(host, "one"), candidate(host, "two"))
    assert {name: record.outcome for name, record in records().items()} == {"one": "measured"}


def test_a_record_says_what_the_candidate_was_allowed(host: Played) -> None:
    run(host, candidate(host, "one"))
    assert records()["one"].limits == {"load_s": 120, "measure_s": 600, "depth": "whole"}


def test_a_damaged_record_is_none(host: Played) -> None:
    run(host, candidate(host, "one"))
    (host.root / "records/deep-1.json").write_text("{")
    assert list(records()) == ["one"]


def test_a_trial_that_nobody_follows_ends(
    host: Played, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ended(BaseException):
        pass

    def end(*_: Any) -> None:
        raise Ended

    monkeypatch.setattr(os, "kill", end)
    old = time.time() - 31
    os.utime(host.root / "lease", (old, old))
    with pytest.raises(Ended):
        trial_run.end_without_lease()
    assert "nobody has followed this trial for 30 s" in capsys.readouterr().out


def test_an_unreadable_job_is_one_line(
    host: Played, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trial_run, "end_without_lease", lambda: None)
    assert trial_run.main("run") == 1
    assert "job.json" in capsys.readouterr().out
