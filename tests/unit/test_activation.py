"""Activation: what is new or changed is started, what is proven is left alone, and what fails gives way again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fake_tier
import pytest

from checker import activation, hardware, systemd, tier
from checker.activation import ActivationError, Outcome
from inventories import BIG, SMALL

BROKEN = "broken"
NOT_READY = "not ready: deep: holds nothing on GPU-3060"


@dataclass
class Played:
    """systemd of a host: a unit runs with the files that were there when it started, and as systemd had read it.

    A tier whose model or unit file holds the word `broken`, or whose port another one holds, does not become active.
    """

    root: Path
    serving: dict[str, dict[str, str]] = field(default_factory=dict)
    starts: list[str] = field(default_factory=list)
    enabled: set[str] = field(default_factory=set)
    loaded: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    failing_sub_state: str = "failed"
    asked: int = 0
    said: list[str] = field(default_factory=lambda: ["Started.", NOT_READY, "Stopped."])

    @property
    def units(self) -> Path:
        return self.root / "units"

    def files(self, name: str) -> dict[str, str]:
        """Return what lies on the host for a tier."""
        return {
            "unit": (self.units / f"llama-tier-{name}.service").read_text(),
            "spec": (self.root / "tiers" / f"{name}.json").read_text(),
            "key": (self.root / f"{name}.key").read_text(),
        }

    def write(
        self, name: str, model: str = "one", unit: str = "one", key: str = "one", port: int | None = None
    ) -> None:
        port = port or {"fast": 8080, "middle": 8082}.get(name, 8081)
        spec = fake_tier.spec(
            f"http://127.0.0.1:{port}",
            name=name,
            key_file=str(self.root / f"{name}.key"),
            model=tier.Model(model, "/m", "ab" * 32),
            argv=("llama-server", "--alias", model, "--port", str(port)),
        )
        (self.units / spec.unit).write_text(f"[Service]\n# {unit}\n")
        (self.root / "tiers" / f"{name}.json").write_text(json.dumps(spec.to_json()))
        (self.root / f"{name}.key").write_text(key)

    def model(self, name: str) -> str:
        """Return the model that a tier serves now."""
        return str(json.loads(self.serving[name]["spec"])["model"]["name"])

    def unit_state(self, unit: str) -> systemd.UnitState:
        self.asked += 1
        assert self.asked < 100, "waits for ever"
        state = self.states.get(unit, "inactive")
        if state == "activating":
            self.states[unit] = "active"
        if state == "failed":
            state = "activating" if self.failing_sub_state == "auto-restart" else "failed"
            return systemd.UnitState(state, self.failing_sub_state, None, "run", "exit-code", 1, 0)
        return systemd.UnitState(state, "running", 4711, "run", "success", 1, 2)

    def restart(self, unit: str) -> None:
        name = unit.removeprefix("llama-tier-").removesuffix(".service")
        self.starts.append(name)
        self.serving.pop(name, None)
        self.loaded.setdefault(unit, (self.units / unit).read_text())
        files = self.files(name) | {"unit": self.loaded[unit]}
        spec = json.loads(files["spec"])
        taken = {json.loads(other["spec"])["port"] for other in self.serving.values()}
        if BROKEN in files["unit"] or spec["model"]["name"] == BROKEN or spec["port"] in taken:
            self.states[unit] = "failed"
        else:
            self.states[unit] = "activating"
            self.serving[name] = files

    def stop(self, unit: str) -> None:
        self.states[unit] = "inactive"
        self.serving.pop(unit.removeprefix("llama-tier-").removesuffix(".service"), None)

    def disable_now(self, unit: str) -> None:
        self.stop(unit)
        self.enabled.discard(unit)

    def daemon_reload(self) -> None:
        self.loaded = {path.name: path.read_text() for path in self.units.iterdir()}

    def needs_daemon_reload(self, unit: str) -> bool:
        return unit in self.loaded and self.loaded[unit] != (self.units / unit).read_text()

    def journal(self, unit: str, invocation_id: str) -> list[str]:
        return self.said


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played(tmp_path)
    played.units.mkdir()
    (tmp_path / "tiers").mkdir()
    load = tier.load
    monkeypatch.setattr(tier, "DIRECTORY", tmp_path / "tiers")
    monkeypatch.setattr(tier, "load", lambda name: load(name, tmp_path / "tiers"))
    monkeypatch.setattr(activation, "_UNITS", played.units)
    monkeypatch.setattr(activation, "_PROVEN", tmp_path / "proven")
    monkeypatch.setattr(activation, "_LOCK", tmp_path / "run/lock")
    monkeypatch.setattr(activation, "_CURRENT", tmp_path / "current")
    monkeypatch.setattr(activation, "_POLL_S", 0)
    for name in ("unit_state", "restart", "stop", "disable_now", "daemon_reload", "needs_daemon_reload", "journal"):
        monkeypatch.setattr(systemd, name, getattr(played, name))
    monkeypatch.setattr(systemd, "reset_failed", lambda unit: None)
    monkeypatch.setattr(systemd, "enable", played.enabled.add)
    monkeypatch.setattr(hardware, "processes", lambda uuid: (hardware.GpuProcess(4711, 100.0),))
    return played


def activate(*names: str) -> Outcome:
    return activation.activate(names, lambda line: None)


def proven(host: Played, *names: str) -> None:
    """Bring tiers up, so that what follows is a later run."""
    for name in names:
        host.write(name)
    activate(*names)
    host.starts.clear()


def refused(*names: str) -> str:
    with pytest.raises(ActivationError) as error:
        activate(*names)
    return str(error.value)


def test_what_is_new_is_started_in_the_given_order(host: Played) -> None:
    host.write("fast")
    host.write("deep")
    assert activate("fast", "deep") == Outcome(activated=("fast", "deep"), retired=())
    assert host.starts == ["fast", "deep"]
    assert {name: host.files(name) for name in ("fast", "deep")} == host.serving
    assert host.enabled == {"llama-tier-fast.service", "llama-tier-deep.service"}


def test_a_second_run_leaves_everything_alone(host: Played) -> None:
    proven(host, "fast", "deep")
    assert activate("fast", "deep") == Outcome(activated=(), retired=())
    assert host.starts == []


@pytest.mark.parametrize("changed", ["unit", "model", "key"])
def test_a_change_restarts_its_tier_alone_and_is_served(host: Played, changed: str) -> None:
    proven(host, "fast", "deep")
    host.write("deep", **{changed: "two"})
    assert activate("fast", "deep") == Outcome(activated=("deep",), retired=())
    assert host.starts == ["deep"]
    assert host.serving["deep"] == host.files("deep")
    assert activate("fast", "deep") == Outcome(activated=(), retired=())


def test_a_proven_tier_that_is_down_is_started(host: Played) -> None:
    proven(host, "fast", "deep")
    host.stop("llama-tier-deep.service")
    assert activate("fast", "deep").activated == ("deep",)
    assert "deep" in host.serving


def test_a_run_that_was_cut_off_is_finished_by_the_next(host: Played) -> None:
    proven(host, "fast")
    host.write("fast", model="two")
    host.restart("llama-tier-fast.service")
    host.states["llama-tier-fast.service"] = "active"
    assert activate("fast").activated == ("fast",), "active, but nobody saw that it became ready with these files"


def test_a_failed_successor_gives_way_to_what_served_before(host: Played) -> None:
    proven(host, "fast", "deep")
    before = host.files("deep")
    host.write("deep", model=BROKEN, unit="two")
    said = refused("fast", "deep")
    assert said == (f"tier deep did not become ready: {NOT_READY}; what served before is active again (one, one)")
    assert host.files("deep") == before
    assert host.serving["deep"] == before
    assert host.starts == ["deep", "deep"]
    assert activate("fast", "deep") == Outcome(activated=(), retired=())


def test_a_unit_file_that_breaks_its_tier_is_read_anew_after_the_way_back(host: Played) -> None:
    proven(host, "deep")
    host.write("deep", unit=BROKEN)
    assert "what served before is active again" in refused("deep")
    assert BROKEN not in host.serving["deep"]["unit"]


def test_a_failure_leaves_the_tiers_after_it_as_they_serve(host: Played) -> None:
    proven(host, "fast", "deep")
    host.write("fast", model=BROKEN)
    host.write("deep", model="two")
    assert "tier fast" in refused("fast", "deep")
    assert (host.model("fast"), host.model("deep")) == ("one", "one")
    host.write("fast", model="two")
    host.write("deep", model="two")
    assert activate("fast", "deep").activated == ("fast", "deep")


def releases(host: Played, *names: str) -> Path:
    """Have releases, the last of which is current."""
    for name in names:
        (host.root / "releases" / name).mkdir(parents=True, exist_ok=True)
    current = host.root / "current"
    current.unlink(missing_ok=True)
    current.symlink_to(f"releases/{names[-1]}")
    return current


def run_on(host: Played, release: str, *names: str, **changes: str) -> None:
    """Write tiers that run a release."""
    for name in names:
        host.write(name, **changes)
        path = host.root / "tiers" / f"{name}.json"
        document = json.loads(path.read_text())
        document["engine"]["release"] = str(host.root / "releases" / release)
        document["argv"][0] = f"{document['engine']['release']}/bin/llama-server"
        path.write_text(json.dumps(document))


def test_a_release_that_fails_with_one_tier_is_taken_from_those_that_moved_to_it(host: Played) -> None:
    releases(host, "old")
    run_on(host, "old", "fast", "middle", "deep")
    activate("fast", "middle", "deep")
    before = dict(host.serving)
    current = releases(host, "old", "new")
    run_on(host, "new", "fast")
    run_on(host, "new", "middle", unit=BROKEN)
    run_on(host, "new", "deep")
    host.starts.clear()

    said = refused("fast", "middle", "deep")

    assert said == (
        f"tier middle did not become ready: {NOT_READY}; what served before is active again (one, old); "
        "fast: what served before is active again (one, old)"
    )
    assert host.starts == ["fast", "middle", "fast", "middle"], "deep was not touched"
    assert host.serving == before
    assert str(current.readlink()) == "releases/old"
    assert activate("fast", "middle", "deep") == Outcome(activated=(), retired=())


def test_a_tier_that_fails_on_the_release_that_it_had_leaves_the_others_where_they_are(host: Played) -> None:
    current = releases(host, "old")
    run_on(host, "old", "fast", "deep")
    activate("fast", "deep")
    run_on(host, "old", "fast", model="two")
    run_on(host, "old", "deep", model=BROKEN)
    refused("fast", "deep")
    assert (host.model("fast"), host.model("deep")) == ("two", "one")
    assert str(current.readlink()) == "releases/old"


def test_a_release_that_is_gone_does_not_become_current_again(host: Played) -> None:
    releases(host, "old")
    run_on(host, "old", "deep")
    activate("deep")
    current = releases(host, "new")
    (host.root / "releases/old").rmdir()
    run_on(host, "new", "deep", unit=BROKEN)
    refused("deep")
    assert str(current.readlink()) == "releases/new"


def test_a_better_prediction_is_no_reason_to_restart(host: Played) -> None:
    proven(host, "deep")
    path = host.root / "tiers/deep.json"
    document = json.loads(path.read_text())
    document["devices"][0]["weights_mib"] += 1
    path.write_text(json.dumps(document))
    assert activate("deep") == Outcome(activated=(), retired=())
    assert host.starts == []
    assert json.loads((host.root / "proven/deep/spec.json").read_text()) == document


@pytest.mark.parametrize("change", [{"argv": ["x"]}, {"environment": {"CUDA_VISIBLE_DEVICES": "GPU-2"}}])
def test_what_the_server_depends_on_restarts_it(host: Played, change: dict[str, Any]) -> None:
    proven(host, "deep")
    path = host.root / "tiers/deep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert activate("deep").activated == ("deep",)


def test_a_failure_leaves_no_unproven_file_for_the_next_boot(host: Played) -> None:
    proven(host, "fast", "deep")
    deep = host.files("deep")
    host.write("fast", model=BROKEN)
    host.write("deep", model="two", unit="two")
    refused("fast", "deep")
    assert host.files("deep") == deep
    assert host.starts == ["fast", "fast"], "deep was not touched"


def test_two_tiers_can_swap_their_ports(host: Played) -> None:
    proven(host, "fast", "deep")
    host.write("fast", port=8081)
    host.write("deep", port=8080)
    assert activate("fast", "deep").activated == ("fast", "deep")
    assert {name: json.loads(files["spec"])["port"] for name, files in host.serving.items()} == {
        "fast": 8081,
        "deep": 8080,
    }


def test_a_tier_that_gave_up_its_port_serves_again_when_the_other_fails(host: Played) -> None:
    proven(host, "fast", "deep")
    before = dict(host.serving)
    host.write("fast", port=8081, model=BROKEN)
    host.write("deep", port=8080)
    refused("fast", "deep")
    assert host.serving == before


def test_a_renamed_tier_serves_under_its_old_name_when_the_new_one_fails(host: Played) -> None:
    proven(host, "deep")
    before = dict(host.serving)
    host.write("deeper", model=BROKEN)
    assert "nothing served as deeper before" in refused("deeper")
    assert host.serving == before
    host.write("deeper")
    assert activate("deeper") == Outcome(activated=("deeper",), retired=("deep",))
    assert list(host.serving) == ["deeper"]


def test_what_an_interrupted_removal_left_is_removed(host: Played) -> None:
    proven(host, "fast", "deep")
    (host.units / "llama-tier-deep.service").unlink()
    assert activate("fast").retired == ("deep",)
    assert not list(host.root.glob("*/*deep*"))


def test_a_first_start_that_fails_has_nothing_to_go_back_to(host: Played) -> None:
    host.write("deep", model=BROKEN)
    assert refused("deep") == (
        f"tier deep did not become ready: {NOT_READY}; nothing served as deep before, so it is down"
    )
    assert host.serving == {}
    assert host.states["llama-tier-deep.service"] == "inactive", "nothing may crash in a loop"
    host.write("deep")
    assert activate("deep").activated == ("deep",)


def test_a_predecessor_that_does_not_start_either_is_told(host: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    proven(host, "deep")
    host.write("deep", model=BROKEN)
    monkeypatch.setattr(host, "loaded", {"llama-tier-deep.service": BROKEN})
    monkeypatch.setattr(systemd, "daemon_reload", lambda: None)
    said = refused("deep")
    assert said.endswith(f"; what served before does not start either ({NOT_READY}), so deep is down")
    assert host.serving == {}


def test_a_unit_that_systemd_would_start_again_and_again_is_stopped(host: Played) -> None:
    host.failing_sub_state = "auto-restart"
    host.write("deep", model=BROKEN)
    assert NOT_READY in refused("deep")
    assert host.states["llama-tier-deep.service"] == "inactive"


def test_a_unit_that_systemd_refuses_gives_way_too(host: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    proven(host, "deep")
    before = host.files("deep")
    host.write("deep", unit=BROKEN)

    def restart(unit: str) -> None:
        if BROKEN in host.loaded[unit]:
            raise systemd.SystemdError(f"systemctl restart failed (exit 1): {unit} has a bad unit file setting.")
        host.restart(unit)

    monkeypatch.setattr(systemd, "restart", restart)
    said = refused("deep")
    assert "bad unit file setting" in said
    assert "what served before is active again (one, one)" in said
    assert host.serving["deep"] == host.files("deep") == before


def test_a_journal_that_cannot_be_read_does_not_stop_the_way_back(
    host: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(unit: str, invocation_id: str) -> list[str]:
        raise systemd.SystemdError("journalctl --sync failed (exit 1): no")

    monkeypatch.setattr(systemd, "journal", unreadable)
    proven(host, "deep")
    host.write("deep", model=BROKEN)
    assert "journalctl --sync failed (exit 1): no; what served before is active again" in refused("deep")
    assert host.model("deep") == "one"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["0.1 E old", "not ready: one", "not ready: two", "end"], "not ready: two"),
        (
            ['{"type":"log", "level":"error", "msg":"no such file\\n"}', "0.00.1 E cannot load", "Stopped."],
            "no such file | 0.00.1 E cannot load",
        ),
        (["one", "two", "", '{"msg":"three"}', "{cut", "  "], "two | three | {cut"),
        (["[1]", '{"level": "info"}', "3"], '[1] | {"level": "info"} | 3'),
        ([], "the journal of llama-tier-deep.service is empty (result exit-code)"),
    ],
    ids=["readiness", "errors of the engine", "end of the journal", "odd lines", "empty"],
)
def test_the_reason_is_the_most_telling_part_of_the_journal(host: Played, said: list[str], reason: str) -> None:
    host.said = said
    host.write("deep", model=BROKEN)
    assert refused("deep") == (
        f"tier deep did not become ready: {reason}; nothing served as deep before, so it is down"
    )


def test_a_tier_that_is_not_named_is_removed(host: Played) -> None:
    proven(host, "fast", "deep")
    fast = host.serving["fast"]
    assert activate("fast") == Outcome(activated=(), retired=("deep",))
    assert host.serving == {"fast": fast}
    assert host.enabled == {"llama-tier-fast.service"}
    assert not list(host.root.glob("*/*deep*")), "unit, spec and what was proven are gone"
    assert list(host.loaded) == ["llama-tier-fast.service"], "systemd has forgotten the unit"
    assert activate("fast") == Outcome(activated=(), retired=())


def test_a_tier_that_comes_back_is_proven_anew(host: Played) -> None:
    proven(host, "fast", "deep")
    activate("fast")
    host.write("deep", model=BROKEN)
    assert "nothing served as deep before" in refused("fast", "deep")


def test_units_of_others_are_not_touched(host: Played) -> None:
    proven(host, "fast")
    (host.units / "nginx.service").write_text("[Service]\n")
    (host.units / "llama-tiers.target").write_text("[Unit]\n")
    assert activate("fast").retired == ()
    assert len(list(host.units.iterdir())) == 3


def progress(*names: str) -> Sequence[str]:
    lines: list[str] = []
    activation.activate(names, lines.append)
    return lines


def test_progress_tells_how_much_of_the_model_is_on_the_cards(host: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {BIG["uuid"]: 100.0, SMALL["uuid"]: 30.0}
    monkeypatch.setattr(
        hardware, "processes", lambda uuid: (hardware.GpuProcess(4711, held[uuid]), hardware.GpuProcess(1, 900.0))
    )
    host.write("deep")
    loading, active = progress("deep")
    assert loading == "deep: loading one, 130 of 235 MiB on the GPUs, 0 s"
    assert active.startswith("deep: active after ")


def test_progress_needs_neither_nvml_nor_a_known_header(host: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(uuid: str) -> tuple[hardware.GpuProcess, ...]:
        raise hardware.HardwareError("modprobe nvidia")

    monkeypatch.setattr(hardware, "processes", unreadable)
    host.write("deep")
    spec = tier.load("deep")
    unknown = replace(spec, devices=tuple(replace(device, weights_mib=None) for device in spec.devices))
    (host.root / "tiers/deep.json").write_text(json.dumps(unknown.to_json()))
    assert progress("deep")[0] == "deep: loading one, 0 MiB on the GPUs, 0 s"


def test_a_tier_without_a_spec_is_told(host: Played) -> None:
    with pytest.raises(tier.TierSpecError, match="no tier 'deep' on this host"):
        activate("deep")
