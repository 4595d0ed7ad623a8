"""Activation: what is new or changed is started, what is proven is left alone, and what fails gives way again."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fake_tier
import power
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from checker import activation, hardware, proven, releases, restoring, systemd, tier
from checker.activation import ActivationError, Outcome
from inventories import BIG, SMALL

BROKEN = "broken"
ROOM = {BIG["uuid"]: 1000.0, SMALL["uuid"]: 1000.0}
NOT_READY = "not ready: deep: holds nothing on GPU-3060"


PORTS = {"fast": 8080, "deep": 8081, "new": 8082, "other": 8083, "middle": 8084}
TARGET = "llama-tiers.target"
UP = ("active", "activating")


@dataclass
class Played:
    """systemd of a host: a unit runs with the files that were there when it started, and as systemd had read it.

    A tier whose model or unit file holds the word `broken` does not become active; nor does one for which a card of
    `ROOM` has not the memory beside the others. A socket opens its port unless another one has it. What units say of
    each other counts: Conflicts=, BindsTo=, Wants=, OnFailure= and OnSuccess=, the last one after a stop by hand too.
    """

    root: Path
    serving: dict[str, dict[str, str]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    starts: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    enabled: set[str] = field(default_factory=set)
    loaded: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    said: list[str] = field(default_factory=lambda: ["Started.", NOT_READY, "Stopped."])
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        """Make the host one on which nothing was ever served."""
        for path in [*self.root.glob("*/*"), *self.root.glob("*.key")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for what in (self.serving, self.ports, self.starts, self.stops, self.enabled, self.loaded, self.states):
            what.clear()
        self.asked = 0

    @property
    def units(self) -> Path:
        return self.root / "units"

    def files(self, name: str) -> dict[str, str]:
        """Return what lies on the host for a tier."""
        return {
            **{path.name: path.read_text() for path in self.units.iterdir() if of(path.name) == name},
            "spec": (self.root / "tiers" / f"{name}.json").read_text(),
            "key": (self.root / f"{name}.key").read_text(),
        }

    def write(
        self,
        name: str,
        model: str = "one",
        unit: str = "one",
        key: str = "one",
        port: int | None = None,
        mib: dict[str, float] | None = None,
        **changes: Any,
    ) -> None:
        """Lay out a tier's files; `mib` is what it needs of cards by UUID, little of two unless it is given.

        `changes` are residency, rivals and fallback.
        """
        needs = mib or {BIG["uuid"]: 184.86, SMALL["uuid"]: 50.30}
        spec = fake_tier.spec(
            str(self.root / f"{name}.key"),
            name=name,
            port=port or PORTS.get(name, 8081),
            model=tier.Model(model, "/m", "ab" * 32),
            argv=("llama-server", "--alias", model, "--of-cards", str(needs)),
            devices=tuple(
                tier.Device(f"CUDA{index}", uuid, "card", 1, need) for index, (uuid, need) in enumerate(needs.items())
            ),
            **changes,
        )
        for file, text in unit_files(spec, unit).items():
            (self.units / file).write_text(text)
        (self.root / "tiers" / f"{name}.json").write_text(json.dumps(spec.to_json()))
        (self.root / f"{name}.key").write_text(key)

    def model(self, name: str) -> str:
        """Return the model that a tier serves now."""
        return str(json.loads(self.serving[name]["spec"])["model"]["name"])

    def open_ports(self) -> dict[str, int]:
        """Return the port that is open for each tier; `deep-fallback` is for deep while its fallback answers."""
        return {unit.removeprefix("llama-tier-").removesuffix(".socket"): port for unit, port in self.ports.items()}

    def is_active(self, unit: str) -> bool:
        return self.states.get(unit) == "active"

    def unit_state(self, unit: str) -> systemd.UnitState:
        self.asked += 1
        assert self.asked < 200, "waits for ever"
        state = self.states.get(unit, "inactive")
        if state == "activating":
            self.states[unit] = "active" if of(unit) in self.serving else "failed"
            for other in self.told(unit, "OnFailure") if self.states[unit] == "failed" else ():
                self.start(other)
        if state == "failed":
            return systemd.UnitState("failed", "failed", None, "run", "exit-code", 1, 0)
        return systemd.UnitState(state, "running", 4711, "run", "success", 1, 2)

    def restart(self, unit: str) -> None:
        self.starts.append(of(unit))
        if of(unit) in self.serving:
            self.end(unit)
        self.start(unit)

    def start_and_wait(self, unit: str, _: float = 0) -> None:
        with self.one_at_a_time:
            self.start(unit)
            self.unit_state(unit)
            if not self.is_active(unit):
                raise systemd.SystemdError(f"systemctl start {unit} failed")

    def start(self, unit: str) -> None:
        if self.states.get(unit) in UP:
            return
        if (self.units / unit).exists():
            self.loaded.setdefault(unit, (self.units / unit).read_text())
        if not all(map(self.is_active, self.told(unit, "Requisite"))):
            raise systemd.SystemdError(f"systemctl start {unit} failed (exit 1): dependency")
        others = [other for other in self.loaded if unit in self.told(other, "Conflicts")]
        self.stop(*self.told(unit, "Conflicts"), *others)
        if self.states.get(unit) in UP:
            return  # by what has just stopped
        if unit.startswith("llama-tiers-"):
            self.bring_back(unit)
        elif unit.endswith(".socket"):
            self.open(unit)
        elif unit == tier.unit_of(of(unit)):
            self.launch(of(unit))
        else:
            self.states[unit] = "active"
        for wanted in self.told(unit, "Wants"):
            self.start(wanted)

    def open(self, unit: str) -> None:
        (port,) = self.told(unit, "ListenStream")
        self.states[unit] = "failed" if int(port) in self.ports.values() else "active"
        if self.states[unit] == "failed":
            raise systemd.SystemdError(f"systemctl start {unit} failed (exit 1): Address already in use")
        self.ports[unit] = int(port)

    def launch(self, name: str) -> None:
        """Begin to load a tier, which ends when systemd is asked for its state."""
        unit = tier.unit_of(name)
        files = self.files(name) | {unit: self.loaded[unit]}
        spec = json.loads(files["spec"])
        self.states[unit] = "activating"
        if BROKEN not in files[unit] and spec["model"]["name"] != BROKEN and self.has_room(spec):
            self.serving[name] = files

    def bring_back(self, unit: str) -> None:
        """Play the units that open a port again and bring a pinned tier back, which need the target."""
        what, _, name = unit.removesuffix(".service").partition("@")
        front, spec = tier.Front(name), self.root / "tiers" / f"{name}.json"
        if not self.is_active(TARGET) or not spec.exists():
            return
        if what == "llama-tiers-port":
            self.start(front.socket)
        elif json.loads(spec.read_text())["residency"] == tier.PINNED and not self.is_active(front.cooldown):
            self.start(tier.unit_of(name))

    def has_room(self, spec: dict[str, Any]) -> bool:
        held = dict.fromkeys(ROOM, 0.0)
        for each in (spec, *(json.loads(files["spec"]) for files in self.serving.values())):
            for device in each["devices"]:
                held[device["uuid"]] += device["weights_mib"] or 0
        return all(held[card] <= mib for card, mib in ROOM.items())

    def told(self, unit: str, what: str) -> list[str]:
        found = re.search(f"^{what}=(.*)$", self.loaded.get(unit, ""), re.MULTILINE)
        return found.group(1).split() if found else []

    def stop(self, *units: str) -> None:
        self.stops += [of(unit) for unit in units if unit == tier.unit_of(of(unit)) and of(unit) in self.serving]
        ended = [unit for unit in units if self.states.get(unit) in UP]
        for unit in ended:
            self.end(unit)
        for unit in ended:
            for other in self.told(unit, "OnSuccess"):
                with contextlib.suppress(systemd.SystemdError):
                    self.start(other)

    def end(self, unit: str) -> None:
        self.states[unit] = "inactive"
        self.ports.pop(unit, None)
        if unit == tier.unit_of(of(unit)):
            self.serving.pop(of(unit), None)
        self.stop(*(other for other in self.loaded if unit in self.told(other, "BindsTo")))

    def enable(self, *units: str) -> None:
        self.enabled |= set(units)
        self.daemon_reload()

    def disable(self, *units: str) -> None:
        assert all((self.units / unit).exists() for unit in units), "systemctl disable fails without the file"
        self.enabled -= set(units)
        self.daemon_reload()

    def daemon_reload(self) -> None:
        self.loaded = {path.name: path.read_text() for path in self.units.iterdir()}

    def needs_daemon_reload(self, unit: str) -> bool:
        return unit in self.loaded and self.loaded[unit] != (self.units / unit).read_text()

    def journal(self, unit: str, invocation_id: str) -> list[str]:
        return self.said


def of(unit: str) -> str:
    """Return the tier that a unit is of."""
    return re.sub(r"^llama-tier-|(-proxy|-cooldown|-fallback)?\.(service|socket)$", "", unit)


def unit_files(spec: tier.TierSpec, words: str) -> dict[str, str]:
    """Return the units of a tier as the templates of role tiers have them, with what they say of each other."""
    front = tier.Front(spec.name)
    rivals_back = "".join(f" llama-tiers-pinned@{rival}.service" for rival in spec.rivals if not spec.pinned)
    again = f" llama-tiers-pinned@{spec.name}.service" if spec.pinned else ""
    rivals = " ".join(map(tier.unit_of, spec.rivals))
    listen = f"[Socket]\nListenStream={spec.port}\n"
    files = {
        spec.unit: f"[Unit]\nConflicts={rivals}\nOnFailure={front.cooldown}{rivals_back}\n[Service]\n# {words}\n",
        front.socket: listen,
        front.proxy: f"[Unit]\nBindsTo={spec.unit}\n",
        front.cooldown: f"[Unit]\nRequisite={TARGET}\nConflicts={front.socket}\n"
        f"OnSuccess=llama-tiers-port@{spec.name}.service{again}\n",
    }
    if spec.fallback:
        files[front.cooldown] += f"Wants={front.stand_in_socket}\n"
        bound = f"[Unit]\nBindsTo={front.cooldown}\nConflicts={front.socket}\n"
        files |= {front.stand_in_socket: bound + listen, front.stand_in: f"[Unit]\nBindsTo={front.stand_in_socket}\n"}
    return files


def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    """Have systemd, NVML and the folders of a host be played."""
    host = Played(tmp_path)
    host.units.mkdir()
    (tmp_path / "tiers").mkdir()
    load = tier.load
    monkeypatch.setattr(tier, "DIRECTORY", tmp_path / "tiers")
    monkeypatch.setattr(tier, "load", lambda name: load(name, tmp_path / "tiers"))
    monkeypatch.setattr(proven, "UNITS", host.units)
    monkeypatch.setattr(proven, "DIRECTORY", tmp_path / "proven")
    monkeypatch.setattr(restoring, "BEFORE", tmp_path / "trial/before.json")
    monkeypatch.setattr(restoring, "UNITS", tmp_path / "run/units")
    monkeypatch.setattr(activation, "_LOCK", tmp_path / "run/lock")
    monkeypatch.setattr(releases, "ROOT", tmp_path)
    monkeypatch.setattr(activation, "_POLL_S", 0)
    for name in (
        *("unit_state", "is_active", "restart", "stop", "enable", "disable"),
        *("daemon_reload", "needs_daemon_reload", "journal"),
    ):
        monkeypatch.setattr(systemd, name, getattr(host, name))
    monkeypatch.setattr(systemd, "start", host.start_and_wait)
    monkeypatch.setattr(systemd, "start_alone", host.start_and_wait)
    monkeypatch.setattr(systemd, "reset_failed", lambda unit: None)
    monkeypatch.setattr(hardware, "processes", lambda uuid: (hardware.GpuProcess(4711, 100.0),))
    return host


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    return played(tmp_path, monkeypatch)


def activate(*names: str, retry: bool = False, spared: Sequence[str] = ()) -> Outcome:
    return activation.activate(names, ROOM, lambda line: None, retry=retry, spared=spared)


def prove(host: Played, *names: str) -> None:
    """Bring tiers up, so that what follows is a later run."""
    for name in names:
        host.write(name)
    activate(*names)
    host.starts.clear()
    host.stops.clear()


def enabled(*names: str) -> set[str]:
    """Return what is started at boot where these tiers are pinned and there are no others."""
    units = [unit for name in names for unit in (tier.unit_of(name), tier.Front(name).socket)]
    return {TARGET, "llama-tiers-resume.service", *units}


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
    assert host.open_ports() == {"fast": 8080, "deep": 8081}
    assert host.enabled == enabled("fast", "deep")
    assert host.is_active(TARGET)


def test_what_serves_after_a_first_run_that_failed_comes_back_after_a_failure(host: Played) -> None:
    host.write("fast")
    host.write("deep", model=BROKEN)
    refused("fast", "deep")
    host.end("llama-tier-fast.service")
    host.start(tier.Front("fast").cooldown)
    assert host.open_ports() == {}
    host.stop(tier.Front("fast").cooldown)
    assert host.open_ports() == {"fast": 8080}
    assert list(host.serving) == ["fast"]


def test_a_second_run_leaves_everything_alone(host: Played) -> None:
    prove(host, "fast", "deep")
    assert activate("fast", "deep") == Outcome(activated=(), retired=())
    assert host.starts == []


@pytest.mark.parametrize("changed", ["unit", "model", "key"])
def test_a_change_restarts_its_tier_alone_and_is_served(host: Played, changed: str) -> None:
    prove(host, "fast", "deep")
    host.write("deep", **{changed: "two"})
    assert activate("fast", "deep") == Outcome(activated=("deep",), retired=())
    assert host.starts == ["deep"]
    assert host.serving["deep"] == host.files("deep")
    assert activate("fast", "deep") == Outcome(activated=(), retired=())


def cut_off(host: Played, *served: str) -> None:
    """Leave the host as a trial that was cut off does, of which nobody has started again what served."""
    (host.units / TARGET).touch()
    units = [TARGET, *(unit for name in served for unit in (tier.Front(name).socket, tier.unit_of(name)))]
    restoring.BEFORE.parent.mkdir(exist_ok=True)
    restoring.BEFORE.write_text(json.dumps({"units": units}))
    host.stop(*units)


def test_a_new_key_is_in_its_place_when_the_server_that_has_the_old_one_is_gone(
    host: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove(host, "fast", "deep")
    key, following = host.root / "deep.key", host.root / "deep.next"
    following.write_text("two")
    stop, found = systemd.stop, []

    def stopping(*units: str) -> None:
        found.append((units, key.read_text()))
        stop(*units)

    monkeypatch.setattr(systemd, "stop", stopping)
    assert activate("fast", "deep") == Outcome(activated=("deep",), retired=())
    assert found == [(("llama-tier-deep.service",), "one")]
    assert host.serving["deep"]["key"] == key.read_text() == "two"
    assert not following.exists()
    assert activate("fast", "deep") == Outcome(activated=(), retired=())


def test_a_new_key_that_waits_leaves_with_its_tier(host: Played) -> None:
    prove(host, "fast", "deep")
    (host.root / "deep.next").write_text("two")
    activate("fast")
    assert not (host.root / "deep.next").exists()


def test_what_a_trial_has_stopped_serves_before_anything_changes(host: Played) -> None:
    prove(host, "fast", "deep")
    cut_off(host, "fast", "deep")
    host.write("deep", model=BROKEN)
    assert "what served before is active again" in refused("fast", "deep")
    assert (host.model("fast"), host.model("deep")) == ("one", "one")
    assert host.open_ports() == {"fast": 8080, "deep": 8081}
    assert not restoring.is_due()


def test_what_serves_now_takes_the_place_of_what_a_trial_has_stopped(host: Played) -> None:
    prove(host, "fast", "deep")
    cut_off(host, "fast", "deep")
    # As long as another program has it.
    host.ports["other.socket"] = PORTS["deep"]
    said: list[str] = []
    host.write("fast")
    activation.activate(["fast"], ROOM, said.append)
    assert any("does not start again" in line for line in said)
    assert list(host.serving) == ["fast"]
    assert not restoring.is_due()


def test_what_is_proven_can_be_read_by_the_plan(host: Played) -> None:
    assert proven.specs() == {}
    prove(host, "fast", "deep")
    documents = {name: json.loads(host.files(name)["spec"]) for name in ("fast", "deep")}
    host.write("deep", model="two")
    assert proven.specs() == documents
    for spoilt in (b"{", b"\xff"):
        (host.root / "proven/deep/spec.json").write_bytes(spoilt)
        assert proven.specs() == {"fast": documents["fast"]}


def test_a_proven_tier_that_is_down_is_started(host: Played) -> None:
    prove(host, "fast", "deep")
    host.stop("llama-tier-deep.service")
    assert activate("fast", "deep").activated == ("deep",)
    assert "deep" in host.serving


def test_a_run_that_was_cut_off_is_finished_by_the_next(host: Played) -> None:
    prove(host, "fast")
    host.write("fast", model="two")
    host.restart("llama-tier-fast.service")
    host.states["llama-tier-fast.service"] = "active"
    assert activate("fast").activated == ("fast",), "active, but nobody saw that it became ready with these files"


def test_a_failed_successor_gives_way_to_what_served_before(host: Played) -> None:
    prove(host, "fast", "deep")
    before = host.files("deep")
    host.write("deep", model=BROKEN, unit="two")
    said = refused("fast", "deep")
    assert said == (f"tier deep did not become ready: {NOT_READY}; what served before is active again (one, one)")
    assert host.files("deep") == before
    assert host.serving["deep"] == before
    assert host.starts == ["deep", "deep"]
    assert activate("fast", "deep") == Outcome(activated=(), retired=())


def test_a_unit_file_that_breaks_its_tier_is_read_anew_after_the_way_back(host: Played) -> None:
    prove(host, "deep")
    host.write("deep", unit=BROKEN)
    assert "what served before is active again" in refused("deep")
    assert BROKEN not in host.serving["deep"]["llama-tier-deep.service"]


def test_a_failure_leaves_the_tiers_after_it_as_they_serve(host: Played) -> None:
    prove(host, "fast", "deep")
    host.write("fast", model=BROKEN)
    host.write("deep", model="two")
    assert "tier fast" in refused("fast", "deep")
    assert (host.model("fast"), host.model("deep")) == ("one", "one")
    host.write("fast", model="two")
    host.write("deep", model="two")
    assert activate("fast", "deep").activated == ("fast", "deep")


def have_releases(host: Played, *names: str) -> None:
    """Have releases, and make the last one current."""
    for name in names:
        (host.root / "releases" / name).mkdir(parents=True, exist_ok=True)
    releases.make_current(names[-1])


def run_on(host: Played, release: str, *names: str, **changes: str) -> None:
    """Write tiers that run a release."""
    for name in names:
        host.write(name, **changes)
        path = host.root / "tiers" / f"{name}.json"
        document = json.loads(path.read_text())
        document["engine"]["release"] = str(host.root / "releases" / release)
        document["argv"][0] = f"{document['engine']['release']}/bin/llama-server"
        path.write_text(json.dumps(document))


def served_with(host: Played, *names: str) -> None:
    """Have releases, and tier `deep` serve from the last of them."""
    for name in names:
        have_releases(host, name)
    run_on(host, names[-1], "deep")
    activate("deep")


def test_a_release_that_fails_with_one_tier_is_taken_from_those_that_moved_to_it(host: Played) -> None:
    have_releases(host, "old")
    run_on(host, "old", "fast", "middle", "deep")
    activate("fast", "middle", "deep")
    before = dict(host.serving)
    have_releases(host, "old", "new")
    run_on(host, "new", "fast")
    run_on(host, "new", "middle", unit=BROKEN)
    run_on(host, "new", "deep")
    host.starts.clear()

    said = refused("fast", "middle", "deep")

    assert said == (
        f"tier middle did not become ready: {NOT_READY}; what served before is active again (one, old); "
        "fast had moved to the same release and went back too"
    )
    assert host.starts == ["fast", "middle", "middle", "fast"], "deep was not touched"
    assert host.serving == before
    assert releases.linked()[-1] == "old"
    assert activate("fast", "middle", "deep") == Outcome(activated=(), retired=())


def test_a_tier_that_fails_on_the_release_that_it_had_leaves_the_others_where_they_are(host: Played) -> None:
    have_releases(host, "old")
    run_on(host, "old", "fast", "deep")
    activate("fast", "deep")
    run_on(host, "old", "fast", model="two")
    run_on(host, "old", "deep", model=BROKEN)
    refused("fast", "deep")
    assert (host.model("fast"), host.model("deep")) == ("two", "one")
    assert releases.linked()[-1] == "old"


def test_a_tier_that_fails_on_an_engine_of_its_own_leaves_the_hosts_release_and_its_tiers_alone(host: Played) -> None:
    have_releases(host, "own", "old")
    run_on(host, "old", "fast")
    run_on(host, "own", "deep")
    activate("fast", "deep")
    have_releases(host, "own-2", "new")
    run_on(host, "new", "fast", model="two")
    run_on(host, "own-2", "deep", unit=BROKEN)
    said = refused("fast", "deep")
    assert said == f"tier deep did not become ready: {NOT_READY}; what served before is active again (one, own)"
    assert host.model("fast") == "two"
    assert releases.linked()[-1] == "new"


def test_a_tier_that_fails_as_it_comes_to_the_hosts_engine_leaves_it_current(host: Played) -> None:
    have_releases(host, "own", "old")
    run_on(host, "old", "fast")
    run_on(host, "own", "deep")
    activate("fast", "deep")
    run_on(host, "old", "deep", unit=BROKEN)
    refused("fast", "deep")
    assert releases.linked()[-1] == "old"


def test_a_release_that_is_gone_does_not_become_current_again(host: Played) -> None:
    served_with(host, "old")
    have_releases(host, "new")
    (host.root / "releases/old").rmdir()
    run_on(host, "new", "deep", unit=BROKEN)
    refused("deep")
    assert releases.linked()[-1] == "new"


def test_a_better_prediction_is_no_reason_to_restart(host: Played) -> None:
    prove(host, "deep")
    path = host.root / "tiers/deep.json"
    document = json.loads(path.read_text())
    document["devices"][0]["weights_mib"] += 1
    path.write_text(json.dumps(document))
    assert activate("deep") == Outcome(activated=(), retired=())
    assert host.starts == []
    assert json.loads((host.root / "proven/deep/spec.json").read_text()) == document


@pytest.mark.parametrize("change", [{"argv": ["x"]}, {"environment": {"CUDA_VISIBLE_DEVICES": "GPU-2"}}])
def test_what_the_server_depends_on_restarts_it(host: Played, change: dict[str, Any]) -> None:
    prove(host, "deep")
    path = host.root / "tiers/deep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert activate("deep").activated == ("deep",)


def test_a_failure_leaves_no_unproven_file_for_the_next_boot(host: Played) -> None:
    prove(host, "fast", "deep")
    deep = host.files("deep")
    host.write("fast", model=BROKEN)
    host.write("deep", model="two", unit="two")
    refused("fast", "deep")
    assert host.files("deep") == deep
    assert host.starts == ["fast", "fast"], "deep was not touched"


def test_two_tiers_can_swap_their_ports_and_no_server_restarts(host: Played) -> None:
    prove(host, "fast", "deep")
    host.write("fast", port=8081)
    host.write("deep", port=8080)
    assert activate("fast", "deep") == Outcome(activated=(), retired=(), moved=("fast", "deep"))
    assert host.open_ports() == {"fast": 8081, "deep": 8080}
    assert (host.starts, host.stops) == ([], [])
    assert activate("fast", "deep") == Outcome(activated=(), retired=())


def test_ports_move_with_servers_that_change(host: Played) -> None:
    prove(host, "fast", "deep")
    host.write("fast", port=8081, model="two")
    host.write("deep", port=8080)
    assert activate("fast", "deep") == Outcome(activated=("fast",), retired=(), moved=("deep",))
    assert host.open_ports() == {"fast": 8081, "deep": 8080}
    assert activate("fast", "deep") == Outcome(activated=(), retired=())


@pytest.mark.parametrize("breaks", ["fast", "deep", "other"])
def test_no_port_moves_when_a_server_fails(host: Played, breaks: str) -> None:
    before = serve(host, fast=on(100), deep=on(100), other=on(100))
    host.write("fast", mib=on(100), port=8081, model=BROKEN if breaks == "fast" else "two")
    host.write("deep", mib=on(100), port=8080, model=BROKEN if breaks == "deep" else "one")
    host.write("other", mib=on(100), model=BROKEN if breaks == "other" else "one")
    said = refused("fast", "deep", "other")
    assert said.startswith(f"tier {breaks} did not become ready")
    assert host.serving == before
    assert {name: host.files(name) for name in before} == before
    assert host.open_ports() == {"fast": 8080, "deep": 8081, "other": 8083}
    assert activate("fast", "deep", "other") == Outcome(activated=(), retired=())


def test_a_new_tier_gives_back_a_port_that_another_one_left_when_a_third_fails(host: Played) -> None:
    before = serve(host, fast=on(100), deep=on(100))
    host.write("new", mib=on(100), port=8080)
    host.write("fast", mib=on(100), port=8090)
    host.write("deep", mib=on(100), model=BROKEN)
    refused("new", "fast", "deep")
    assert host.serving == before
    assert host.open_ports() == {"fast": 8080, "deep": 8081}


def test_a_port_that_a_stranger_took_meanwhile_leaves_no_other_one_closed(host: Played) -> None:
    prove(host, "fast", "deep", "other")
    host.ports["stranger"] = 9000
    host.write("fast", port=9000)
    host.write("deep", model="two", port=9001)
    host.write("other", model="two")
    host.end(tier.Front("other").socket)
    said = refused("fast", "deep", "other")
    assert said.startswith("tier fast: port 9000 cannot be opened (systemctl start llama-tier-fast.socket failed")
    assert said.endswith("free it, or give the tier another port; at the port of before: fast, deep")
    assert host.open_ports() == {"stranger": 9000, "fast": 8080, "deep": 8081, "other": 8083}
    assert [host.model(name) for name in ("fast", "deep", "other")] == ["one", "two", "two"]
    assert [tier.load(name).port for name in ("fast", "deep", "other")] == [8080, 8081, 8083]
    assert host.enabled == enabled("fast", "deep", "other")
    assert activate("fast", "deep", "other") == Outcome(activated=(), retired=()), "the servers are proven"

    del host.ports["stranger"]
    host.write("fast", port=9000)
    host.write("deep", model="two", port=9001)
    assert activate("fast", "deep", "other") == Outcome(activated=(), retired=(), moved=("fast", "deep"))
    assert host.open_ports() == {"fast": 9000, "deep": 9001, "other": 8083}


def test_tiers_that_took_each_others_ports_go_back_together_and_what_is_new_there_is_down(host: Played) -> None:
    prove(host, "fast", "deep")
    host.ports["stranger"] = 9000
    host.write("fast", port=9000)
    host.write("deep", port=8080)
    host.write("new", port=8081)
    assert refused("fast", "deep", "new").endswith("at the port of before: fast, deep; down: new")
    assert host.open_ports() == {"stranger": 9000, "fast": 8080, "deep": 8081}
    assert sorted(host.serving) == ["deep", "fast"]
    assert host.enabled == enabled("fast", "deep"), "at boot each port has one holder too"


def test_a_port_that_stays_where_it_was_and_is_taken_moves_no_other_one_back(host: Played) -> None:
    prove(host, "fast", "deep")
    host.end(tier.Front("fast").socket)
    host.ports["stranger"] = 8080
    host.write("deep", port=9000)
    assert refused("fast", "deep").endswith("free it, or give the tier another port")
    assert host.open_ports() == {"stranger": 8080, "deep": 9000}
    assert host.enabled == enabled("fast", "deep")


def test_a_port_that_is_taken_on_the_way_back_is_told_with_what_failed(host: Played) -> None:
    prove(host, "fast", "deep")
    host.end(tier.Front("fast").socket)
    host.ports["stranger"] = 8080
    host.end(tier.Front("deep").socket)
    host.write("deep", model=BROKEN)
    said = refused("fast", "deep")
    assert said.startswith("tier deep did not become ready")
    assert "; tier fast: port 8080 cannot be opened" in said
    assert host.open_ports() == {"stranger": 8080, "deep": 8081}


def on(big: float = 0, small: float = 0) -> dict[str, float]:
    """Return what a tier needs of the cards, of which each has 1,000 MiB."""
    return {card["uuid"]: mib for card, mib in ((BIG, big), (SMALL, small)) if mib}


def serve(host: Played, **needs: dict[str, float]) -> dict[str, dict[str, str]]:
    """Bring tiers up with what they need, and return what they serve."""
    for name, mib in needs.items():
        host.write(name, mib=mib)
    activate(*needs)
    host.starts.clear()
    host.stops.clear()
    return dict(host.serving)


def test_who_gives_memory_up_goes_before_who_takes_it(host: Played) -> None:
    serve(host, fast=on(300), deep=on(600))
    host.write("fast", mib=on(700))
    host.write("deep", mib=on(200))
    assert activate("fast", "deep").activated == ("deep", "fast")
    assert host.stops == [], "both served until their own turn"
    assert {name: host.files(name) for name in ("fast", "deep")} == host.serving
    assert activate("fast", "deep") == Outcome(activated=(), retired=())


def test_two_tiers_can_swap_their_cards(host: Played) -> None:
    serve(host, fast=on(big=800), deep=on(small=800), other=on(100, 100))
    host.write("fast", mib=on(small=800))
    host.write("deep", mib=on(big=800))
    assert activate("fast", "deep", "other").activated == ("fast", "deep")
    assert host.stops == ["deep"], "fast cannot be on a card beside the old deep; nobody else stops"
    assert {name: host.files(name) for name in ("fast", "deep", "other")} == host.serving
    assert activate("fast", "deep", "other") == Outcome(activated=(), retired=())


def test_who_has_room_beside_the_others_stops_nobody(host: Played) -> None:
    serve(host, fast=on(big=400), deep=on(small=400))
    host.write("fast", mib=on(small=400))
    host.write("deep", mib=on(big=400))
    assert activate("fast", "deep").activated == ("fast", "deep")
    assert host.stops == []


@pytest.mark.parametrize("fails", ["fast", "deep"])
def test_a_swap_that_fails_is_undone_on_both_sides(host: Played, fails: str) -> None:
    before = serve(host, fast=on(big=800), deep=on(small=800))
    for name, mib in (("fast", on(small=800)), ("deep", on(big=800))):
        host.write(name, mib=mib, model=BROKEN if name == fails else "two")
    said = refused("fast", "deep")
    assert said.startswith(f"tier {fails} did not become ready: {NOT_READY}; what served before is active again")
    assert said.endswith("; fast had its place and went back too") == (fails == "deep")
    assert host.serving == before
    assert {name: host.files(name) for name in before} == before
    assert activate("fast", "deep") == Outcome(activated=(), retired=())


def test_what_is_proven_and_in_nobodys_way_stays_when_another_fails(host: Played) -> None:
    serve(host, fast=on(big=800), deep=on(small=800), other=on(100))
    host.write("other", mib=on(150), model="two")
    host.write("fast", mib=on(small=800))
    host.write("deep", mib=on(big=800), model=BROKEN)
    refused("other", "fast", "deep")
    assert {name: host.model(name) for name in host.serving} == {"other": "two", "fast": "one", "deep": "one"}
    assert host.starts.count("other") == 1
    assert host.starts.count("deep") == 2, "its failed start, and what served before"


def test_what_stays_is_reckoned_with_on_the_way_back(host: Played) -> None:
    serve(host, fast=on(small=800), deep=on(big=450), other=on(big=400))
    host.write("other", mib=on(big=300))
    host.write("fast", mib=on(big=550))
    host.write("deep", mib=on(small=500), model=BROKEN)
    assert "fast had its place and went back too" in refused("other", "fast", "deep")
    assert sorted(host.serving) == ["deep", "fast", "other"]
    assert host.stops == ["deep", "fast"], "beside the old deep and other, the new fast had no room"


def test_a_new_tier_in_the_place_of_one_that_left_goes_when_another_fails(host: Played) -> None:
    """What left the inventory is gone only when all is well: until then it may have to serve again."""
    before = serve(host, deep=on(big=800), fast=on(small=100))
    host.write("new", mib=on(big=700))
    host.write("fast", mib=on(small=100), model=BROKEN)
    assert "new had its place and went back too" in refused("new", "fast")
    assert host.serving == before
    host.write("fast", mib=on(small=100), model="two")
    assert activate("new", "fast") == Outcome(activated=("new", "fast"), retired=("deep",))
    assert sorted(host.serving) == ["fast", "new"]


def test_what_did_not_serve_is_not_started_by_a_failure_of_another(host: Played) -> None:
    prove(host, "fast", "deep", "other")
    host.stop("llama-tier-other.service")
    host.write("fast", model=BROKEN)
    refused("fast", "deep")
    assert sorted(host.serving) == ["deep", "fast"]


def test_a_card_that_the_plan_does_not_know_stops_nobody(host: Played) -> None:
    serve(host, fast=on(big=500), deep=on(small=500))
    host.write("fast", mib=on(small=500))
    host.write("deep", mib=on(big=500))
    activation.activate(["fast", "deep"], {}, lambda line: None)
    assert host.stops == []


def test_a_tier_that_was_never_proven_holds_what_its_files_say(host: Played) -> None:
    """A first run that was cut off has left it serving."""
    serve(host, fast=on(big=300))
    host.write("deep", mib=on(big=600))
    host.restart("llama-tier-deep.service")
    host.write("fast", mib=on(big=400))
    assert activate("deep", "fast").activated == ("deep", "fast")
    assert host.stops == []


NAMES = ("fast", "deep", "other", "new")
needs = st.builds(on, big=st.integers(0, 400), small=st.integers(0, 400)).filter(bool)


@st.composite
def changes(draw: st.DrawFn) -> dict[str, list[Any]]:
    """Draw for each tier what it needs and which port it has, before (None: it is new) and after, and its new model.

    All old ones have room beside each other, and so have all new ones.
    """
    names = NAMES[: draw(st.integers(2, 4))]
    after = draw(st.permutations([8080 + place for place in range(len(names))]))
    drawn: dict[str, list[Any]] = {}
    for place, name in enumerate(names):
        before = draw(st.one_of(needs, needs, st.none()))
        drawn[name] = [before, 8080 + place, draw(needs), after[place], draw(st.sampled_from(["two", "two", BROKEN]))]
    for when in (0, 2):
        for card in ROOM:
            assume(sum(mib[when].get(card, 0) for mib in drawn.values() if mib[when]) <= ROOM[card])
    return drawn


@settings(max_examples=200, suppress_health_check=list(HealthCheck), report_multiple_bugs=False)
@given(changes())
def test_whatever_changes_what_served_serves(host: Played, drawn: dict[str, list[Any]]) -> None:
    host.forget()
    before = {name: (mib, port) for name, (mib, port, *_) in drawn.items() if mib}
    for name, (mib, port) in before.items():
        host.write(name, mib=mib, port=port)
    activate(*before)
    served = {name: host.files(name) for name in before}
    for name, (_, _, mib, port, model) in drawn.items():
        host.write(name, mib=mib, port=port, model=model)
    after = {name: host.files(name) for name in drawn}

    if all(model != BROKEN for *_, model in drawn.values()):
        activate(*drawn)
        assert {name: host.files(name) for name in drawn} == after
        assert {name: host.model(name) for name in host.serving} == {name: model for name, (*_, model) in drawn.items()}
        assert host.open_ports() == {name: port for name, (*_, port, _) in drawn.items()}
        assert activate(*drawn) == Outcome(activated=(), retired=())
        return
    said = refused(*drawn)
    broken = {name for name, (*_, model) in drawn.items() if model == BROKEN}
    assert said.split()[1] in broken, "nobody fails for want of a port or of memory"
    assert set(served) <= set(host.serving)
    for name, files in host.serving.items():
        assert files in (served.get(name), after[name])
        assert files == host.files(name)
    assert host.open_ports() == {name: json.loads(files["spec"])["port"] for name, files in host.serving.items()}


def test_a_new_tier_goes_where_those_that_exchange_their_ports_come_back_from_a_failure(host: Played) -> None:
    """What goes back for its port needs its old place again, not its new one."""
    serve(host, fast=on(334), other=on(400))
    host.write("fast", port=8083, mib=on(1), model="two")
    host.write("deep", mib=on(267))
    host.write("other", port=8080, mib=on(1), model=BROKEN)
    refused("fast", "deep", "other")
    assert {name: host.model(name) for name in host.serving} == {"fast": "one", "other": "one"}


def test_a_new_tier_in_what_a_swap_left_is_proven_when_all_went_well(host: Played) -> None:
    """Nobody comes back any more, so that nobody can need its place."""
    serve(host, fast=on(500), deep=on(100))
    host.write("fast", port=8081, mib=on(300))
    host.write("deep", port=8080, mib=on(100), model="two")
    host.write("new", mib=on(500))
    assert sorted(activate("fast", "deep", "new").activated) == ["deep", "fast", "new"]
    assert activate("fast", "deep", "new") == Outcome(activated=(), retired=())


def go_back(host: Played, *names: str) -> None:
    host.starts.clear()
    host.stops.clear()
    activation.go_back(names, lambda line: None)


def accepted(host: Played, **needs: dict[str, float]) -> dict[str, dict[str, str]]:
    """Bring tiers up with what they need, accept them, and return what they serve."""
    before = serve(host, **needs)
    for name in needs:
        proven.accept(name)
    return before


def test_what_was_accepted_serves_again_on_its_cards_and_ports(host: Played) -> None:
    before = accepted(host, fast=on(big=800), deep=on(small=800), other=on(100, 100))
    host.write("fast", mib=on(small=800), port=8081)
    host.write("deep", mib=on(big=800), port=8080)
    activate("fast", "deep", "other")
    go_back(host, "fast", "deep", "other")
    assert host.serving == before
    assert {name: host.files(name) for name in before} == before
    assert host.open_ports() == {"fast": 8080, "deep": 8081, "other": 8083}
    assert sorted(host.starts) == ["deep", "fast"], "other goes on"
    assert len(host.stops) == 1, "the other one serves until its turn"
    assert activate("fast", "deep", "other") == Outcome(activated=(), retired=())


def test_what_was_never_accepted_stays_as_it_is(host: Played) -> None:
    before = accepted(host, fast=on(100))
    host.write("fast", mib=on(100), model="two")
    host.write("new", mib=on(100))
    activate("fast", "new")
    go_back(host, "fast", "new")
    assert host.serving == before | {"new": host.files("new")}
    assert host.starts == ["fast"]


def test_what_served_serves_again_when_it_cannot_go_back(host: Played) -> None:
    """A new tier has the room by now."""
    accepted(host, fast=on(800))
    host.write("fast", mib=on(100), model="two")
    host.write("new", mib=on(800))
    activate("fast", "new")
    now = dict(host.serving)
    with pytest.raises(ActivationError, match=r"fast did not become ready: .*; what served before is active again"):
        go_back(host, "fast", "new")
    assert host.serving == now
    assert {name: host.files(name) for name in now} == now
    assert activate("fast", "new") == Outcome(activated=(), retired=())


@pytest.mark.parametrize(("what", "serves"), [("daemon_reload", "new"), ("enable", "old")])
def test_the_release_that_serves_is_current_when_systemd_fails_before_or_after_the_way_back(
    host: Played, monkeypatch: pytest.MonkeyPatch, what: str, serves: str
) -> None:
    have_releases(host, "old")
    run_on(host, "old", "deep", model="old")
    activate("deep")
    proven.accept("deep")
    have_releases(host, "new")
    run_on(host, "new", "deep", model="new", unit="new")
    activate("deep")
    failing(monkeypatch, what, 1)
    with pytest.raises(systemd.SystemdError):
        go_back(host, "deep")
    assert (host.model("deep"), releases.linked()[-1]) == (serves, serves)


@pytest.mark.parametrize("renames", range(3))
def test_a_cut_leaves_what_was_accepted_or_what_is_to_be(
    host: Played, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    accepted(host, deep=on(100))
    host.write("deep", mib=on(100), model="two")
    activate("deep")
    rename, left = Path.rename, iter(range(renames))

    def cut(path: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(Path, "rename", cut)
        proven.accept("deep")
    spec = proven.accepted("deep")
    assert spec
    assert spec.model.name == ("two" if renames == 2 else "one")
    proven.accept("deep")
    host.write("deep", mib=on(100), model="three")
    activate("deep")
    go_back(host, "deep")
    assert host.model("deep") == "two"


@pytest.mark.parametrize("changes", range(24))
def test_a_cut_leaves_what_was_proven_or_what_is_to_be(
    host: Played, monkeypatch: pytest.MonkeyPatch, changes: int
) -> None:
    host.write("deep", unit="one")
    activate("deep")
    one = host.files("deep")
    host.write("deep", model="two", unit="two", fallback="fast")
    two = host.files("deep")
    remember = proven.remember

    def cut(spec: tier.TierSpec) -> None:
        with power.cut_after(changes):
            remember(spec)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(proven, "remember", cut)
        activate("deep")
    host.write("deep", model=BROKEN, unit="three", fallback="fast")
    assert "what served before is active again" in refused("deep")
    assert host.files("deep") in (one, two)
    assert host.serving["deep"] == host.files("deep")
    assert activate("deep") == Outcome(activated=(), retired=())


@pytest.mark.parametrize("changes", range(24))
def test_what_is_accepted_is_one_proof_after_a_cut_too(host: Played, changes: int) -> None:
    prove(host, "deep")
    one = host.files("deep")
    host.write("deep", model="two", unit="two", fallback="fast")
    two = host.files("deep")
    with power.cut_after(changes):
        proven.remember(tier.load("deep"))
    proven.accept("deep")
    host.write("deep", model="three", unit="three")
    proven.put_back_accepted("deep")
    assert host.files("deep") in (one, two)


@pytest.mark.parametrize("changes", range(12))
def test_a_cut_on_the_way_back_leaves_no_tier_without_its_unit(host: Played, changes: int) -> None:
    prove(host, "deep")
    before = host.files("deep")
    host.write("deep", model="two", unit="two", fallback="fast")
    with power.cut_after(changes):
        proven.put_back("deep")
    assert host.files("deep").keys() >= before.keys()
    proven.put_back("deep")
    assert host.files("deep") == before


def test_what_systemd_cannot_do_after_a_failure_hides_no_reason_of_it(
    host: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove(host, "deep")
    host.write("deep", model=BROKEN, unit="two")

    def in_vain(*units: str) -> None:
        raise systemd.SystemdError(f"systemctl enable {units[0]}: no answer within 240 s")

    monkeypatch.setattr(systemd, "enable", in_vain)
    told = refused("deep")
    assert "tier deep did not become ready" in told
    assert told.endswith("systemctl enable llama-tiers.target: no answer within 240 s")


def test_after_a_failure_current_and_previous_are_what_they_were(host: Played) -> None:
    served_with(host, "first", "old")
    have_releases(host, "new")
    assert releases.linked() == ("first", "old", "new")
    run_on(host, "new", "deep", unit=BROKEN)
    refused("deep")
    assert releases.linked() == ("first", "old")


def test_a_release_that_was_never_served_is_no_longer_current_after_two_runs_that_went_wrong(host: Played) -> None:
    served_with(host, "old")
    have_releases(host, "cut-off")
    have_releases(host, "new")
    run_on(host, "new", "deep", unit=BROKEN)
    refused("deep")
    assert releases.linked() == ("old",)


def test_a_release_that_tiers_are_proven_with_stays_current(host: Played) -> None:
    served_with(host, "old")
    have_releases(host, "new")
    activation.leave_unproven_release()
    assert releases.linked() == ("old",)
    have_releases(host, "new")
    run_on(host, "new", "deep")
    activate("deep")
    activation.leave_unproven_release()
    assert releases.linked() == ("old", "new")


def test_what_a_run_that_was_cut_off_made_current_is_none_to_go_back_to(host: Played) -> None:
    served_with(host, "first", "old")
    have_releases(host, "cut-off")
    (host.root / "releases/new").mkdir()
    for _ in range(2):
        activation.take_release("new")
        assert releases.linked() == ("first", "old", "new")
    activation.take_release("old")
    assert releases.linked() == ("first", "old")


def failing(monkeypatch: pytest.MonkeyPatch, what: str, count: int) -> None:
    """Have systemd fail at one call of a kind."""
    do, calls = getattr(systemd, what), iter(range(1, 99))

    def once(*units: str) -> None:
        if next(calls) == count:
            raise systemd.SystemdError(f"systemctl {what} {' '.join(units)} failed (exit 1): no answer")
        do(*units)

    monkeypatch.setattr(systemd, what, once)


@pytest.mark.parametrize(("what", "count"), [("stop", 1), ("restart", 2)])
def test_what_served_serves_again_when_systemd_fails_in_a_turn(
    host: Played, monkeypatch: pytest.MonkeyPatch, what: str, count: int
) -> None:
    before = serve(host, fast=on(big=800), deep=on(small=800))
    host.write("fast", mib=on(small=800))
    host.write("deep", mib=on(big=800))
    failing(monkeypatch, what, count)
    assert re.search(
        f"did not become ready: systemctl {what} .* no answer; what served before", refused("fast", "deep")
    )
    assert host.serving == before
    assert {name: host.files(name) for name in before} == before


def test_one_that_systemd_fails_for_on_the_way_back_leaves_no_other_down(
    host: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = serve(host, fast=on(800), deep=on(small=500), other=on(small=400))
    host.write("fast", mib=on(small=900), model=BROKEN)
    host.write("deep", mib=on(big=500))
    host.write("other", mib=on(big=400))
    failing(monkeypatch, "restart", 5)
    said = refused("fast", "deep", "other")
    assert said.startswith("tier fast did not become ready: ")
    assert said.endswith(" failed (exit 1): no answer")
    assert len(host.serving) == 2
    assert host.serving.items() <= before.items()


def test_a_renamed_tier_serves_under_its_old_name_when_the_new_one_fails(host: Played) -> None:
    prove(host, "deep")
    before = dict(host.serving)
    host.write("deeper", model=BROKEN)
    assert "nothing served as deeper before" in refused("deeper")
    assert host.serving == before
    host.write("deeper")
    assert activate("deeper") == Outcome(activated=("deeper",), retired=("deep",))
    assert list(host.serving) == ["deeper"]


def test_a_removal_that_was_cut_off_is_finished_by_the_next(host: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever file was the last one that was removed."""
    prove(host, "fast", "deep")
    whole = host.root / "whole"
    shutil.copytree(host.root, whole)
    unlink, rmtree = Path.unlink, shutil.rmtree
    for left in range(20):
        for part in ("units", "tiers", "proven"):
            shutil.copytree(whole / part, host.root / part, dirs_exist_ok=True)
        shutil.copy2(whole / "deep.key", host.root)
        budget = iter(range(left))

        def counted(do: Callable[..., Any], *given: Any, left: Iterator[int] = budget, **options: Any) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            do(*given, **options)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "unlink", lambda path, **options: counted(unlink, path, **options))
            patch.setattr(shutil, "rmtree", lambda path, **options: counted(rmtree, path, **options))
            proven.remove("deep")
        activate("fast")
        assert not [path for path in host.root.glob("**/*deep*") if whole not in path.parents], left


def test_a_first_start_that_fails_has_nothing_to_go_back_to(host: Played) -> None:
    host.write("deep", model=BROKEN)
    assert refused("deep") == (
        f"tier deep did not become ready: {NOT_READY}; nothing served as deep before, so it is down"
    )
    assert host.serving == {}
    assert [unit for unit, state in host.states.items() if state in UP] == [TARGET], "nothing may crash in a loop"
    assert host.enabled == enabled()
    host.write("deep")
    assert activate("deep").activated == ("deep",)


def test_a_predecessor_that_does_not_start_either_is_told(host: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    prove(host, "deep")
    host.write("deep", model=BROKEN)
    monkeypatch.setattr(host, "loaded", {"llama-tier-deep.service": BROKEN})
    monkeypatch.setattr(systemd, "daemon_reload", lambda: None)
    said = refused("deep")
    assert said.endswith(f"; what served before does not start either ({NOT_READY}), so deep is down")
    assert host.serving == {}


def test_a_unit_that_systemd_refuses_gives_way_too(host: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    prove(host, "deep")
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
    prove(host, "deep")
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
    prove(host, "fast", "deep")
    fast = host.serving["fast"]
    assert activate("fast") == Outcome(activated=(), retired=("deep",))
    assert host.serving == {"fast": fast}
    assert host.enabled == enabled("fast")
    assert host.open_ports() == {"fast": 8080}
    assert not list(host.root.glob("**/*deep*")), "units, spec, key and what was proven are gone"
    assert {of(unit) for unit in host.loaded} == {"fast"}, "systemd has forgotten the units"
    assert activate("fast") == Outcome(activated=(), retired=())


def test_a_tier_that_is_spared_stays_as_it_is(host: Played) -> None:
    """One that was given up and has its fallback answer, while the others go back to another release."""
    host.write("fast")
    host.write("deep", model=BROKEN, fallback="fast")
    activate("fast", "deep")
    before, ports, files = host.serving["fast"], host.open_ports(), host.files("deep")
    host.write("fast", model="two")
    assert activate("fast", spared=["deep"]) == Outcome(activated=("fast",), retired=())
    assert host.serving["fast"] != before
    assert host.files("deep") == files
    assert set(ports) <= set(host.open_ports())
    assert activate("fast").retired == ("deep",)


def test_a_tier_that_is_spared_and_serves_keeps_its_place(host: Played) -> None:
    prove(host, "fast", "deep")
    deep = host.serving["deep"]
    host.write("fast", model="two")
    assert activate("fast", spared=["deep"]).activated == ("fast",)
    assert host.serving["deep"] == deep
    assert "llama-tier-deep.service" not in host.stops


def test_a_tier_that_comes_back_is_proven_anew(host: Played) -> None:
    prove(host, "fast", "deep")
    activate("fast")
    host.write("deep", model=BROKEN)
    assert "nothing served as deep before" in refused("fast", "deep")


def test_units_of_others_are_not_touched(host: Played) -> None:
    prove(host, "fast")
    (host.units / "nginx.service").write_text("[Service]\n")
    (host.units / "llama-tiers.target").write_text("[Unit]\n")
    assert activate("fast").retired == ()
    assert {"nginx.service", "llama-tiers.target"} < {path.name for path in host.units.iterdir()}


def progress(*names: str) -> Sequence[str]:
    lines: list[str] = []
    activation.activate(names, ROOM, lines.append)
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


def test_progress_is_told_of_all_that_the_plan_expects(host: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "processes", lambda uuid: (hardware.GpuProcess(4711, 200.0),))
    host.write("deep")
    spec = tier.load("deep")
    devices = tuple(replace(each, kv_mib=20.0, compute_mib=10.0, overhead_mib=70.0) for each in spec.devices)
    (host.root / "tiers/deep.json").write_text(json.dumps(replace(spec, devices=devices).to_json()))
    assert progress("deep")[0] == "deep: loading one, 400 of 435 MiB on the GPUs, 0 s"


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


RIVALS: dict[str, dict[str, Any]] = {
    "fast": {"rivals": ("deep",), "mib": on(big=800)},
    "deep": {"rivals": ("fast",), "mib": on(big=900), "residency": tier.ON_DEMAND},
}


def switched(host: Played, **changes: dict[str, Any]) -> None:
    """Bring up a pinned tier and one on demand that has no room beside it; `changes` are of their files."""
    for name, files in RIVALS.items():
        host.write(name, **files, **changes.get(name, {}))
    activate(*RIVALS)
    host.starts.clear()
    host.stops.clear()


def test_a_tier_on_demand_is_proven_and_gives_its_place_back(host: Played) -> None:
    for name, files in RIVALS.items():
        host.write(name, **files)
    assert activate("deep", "fast") == Outcome(activated=("fast", "deep"), retired=())
    assert host.starts == ["fast", "deep", "fast"], "each is loaded, and the pinned one serves in the end"
    assert list(host.serving) == ["fast"]
    assert host.open_ports() == {"fast": 8080, "deep": 8081}
    assert host.enabled == enabled("fast") | {tier.Front("deep").socket}
    assert activate("deep", "fast") == Outcome(activated=(), retired=())
    assert host.starts == ["fast", "deep", "fast"]


def test_a_change_of_a_tier_on_demand_is_proven_and_gives_its_place_back(host: Played) -> None:
    switched(host)
    host.write("deep", **RIVALS["deep"], model="two")
    assert activate(*RIVALS).activated == ("deep",)
    assert host.starts == ["deep", "fast"]
    assert list(host.serving) == ["fast"]


def test_a_pinned_tier_that_gave_way_to_a_client_takes_its_place_back(host: Played) -> None:
    switched(host)
    host.start("llama-tier-deep.service")
    host.unit_state("llama-tier-deep.service")
    assert list(host.serving) == ["deep"]
    assert activate(*RIVALS).activated == ("fast",)
    assert list(host.serving) == ["fast"]


def test_a_tier_on_demand_that_fails_leaves_the_pinned_one_serving(host: Played) -> None:
    switched(host)
    before = dict(host.serving)
    host.write("deep", **RIVALS["deep"], model=BROKEN)
    assert "tier deep did not become ready" in refused(*RIVALS)
    assert host.serving == before
    assert host.open_ports() == {"fast": 8080, "deep": 8081}
    assert activate(*RIVALS) == Outcome(activated=(), retired=())


def test_residency_decides_what_is_started_at_boot(host: Played) -> None:
    prove(host, "fast", "deep")
    host.write("deep", residency=tier.ON_DEMAND)
    assert activate("fast", "deep") == Outcome((), (), moved=("deep",))
    assert host.enabled == enabled("fast") | {tier.Front("deep").socket}
    host.write("deep")
    activate("fast", "deep")
    assert host.enabled == enabled("fast", "deep")
    assert host.starts == []


def test_how_a_tier_stands_to_others_is_no_reason_to_restart_it(host: Played) -> None:
    prove(host, "fast", "deep")
    host.write("fast", rivals=("other",))
    assert activate("fast", "deep") == Outcome(activated=(), retired=(), moved=("fast",))
    assert (host.starts, host.stops) == ([], [])
    assert host.loaded["llama-tier-fast.service"] == host.files("fast")["llama-tier-fast.service"], "systemd knows it"
    assert activate("fast", "deep") == Outcome(activated=(), retired=())


def test_a_new_tier_that_fails_is_given_up_for_its_fallback(host: Played) -> None:
    prove(host, "fast")
    host.write("deep", model=BROKEN, fallback="fast")
    given_up = Outcome(activated=(), retired=(), degraded={"deep": NOT_READY})
    assert activate("fast", "deep") == given_up
    assert host.open_ports() == {"fast": 8080, "deep-fallback": 8081}
    assert list(host.serving) == ["fast"]
    assert tier.Front("deep").socket in host.enabled, "the next boot tries again"
    tried = list(host.starts)
    assert activate("fast", "deep") == given_up
    assert host.starts == tried == ["deep"], "nothing has changed, so it is not tried again"

    assert activate("fast", "deep", retry=True) == given_up
    assert host.starts == ["deep", "deep"]

    host.write("deep", model="two", fallback="fast")
    assert activate("fast", "deep") == Outcome(activated=("deep",), retired=())
    assert host.open_ports() == {"fast": 8080, "deep": 8081}
    assert sorted(host.serving) == ["deep", "fast"]
    assert not host.is_active(tier.Front("deep").cooldown)
    assert activate("fast", "deep") == Outcome(activated=(), retired=())


def test_a_fallback_whose_time_is_over_stands_in_again(host: Played) -> None:
    """Its cooldown has ended, and opened the port of a tier that nobody has asked for yet."""
    prove(host, "fast")
    host.write("deep", model=BROKEN, fallback="fast", residency=tier.ON_DEMAND)
    activate("fast", "deep")
    host.stop(tier.Front("deep").cooldown)
    assert host.open_ports() == {"fast": 8080, "deep": 8081}
    assert activate("fast", "deep").degraded == {"deep": NOT_READY}
    assert host.open_ports() == {"fast": 8080, "deep-fallback": 8081}


def test_a_proven_tier_with_a_fallback_goes_back_and_is_not_given_up(host: Played) -> None:
    prove(host, "fast")
    host.write("deep", fallback="fast")
    activate("fast", "deep")
    before = dict(host.serving)
    host.write("deep", model=BROKEN, fallback="fast")
    assert "what served before is active again" in refused("fast", "deep")
    assert host.serving == before
    assert host.open_ports() == {"fast": 8080, "deep": 8081}


@pytest.mark.parametrize("residency", [tier.PINNED, tier.ON_DEMAND])
def test_a_tier_that_failed_while_it_served_is_left_to_its_fallback(host: Played, residency: str) -> None:
    host.write("fast")
    host.write("deep", fallback="fast", residency=residency)
    activate("fast", "deep")
    host.end("llama-tier-deep.service")
    host.states["llama-tier-deep.service"] = "failed"
    host.start(tier.Front("deep").cooldown)
    host.starts.clear()
    assert host.open_ports() == {"fast": 8080, "deep-fallback": 8081}
    assert activate("fast", "deep") == Outcome(activated=(), retired=())
    assert host.starts == []
    assert host.open_ports() == {"fast": 8080, "deep-fallback": 8081}
    assert activate("fast", "deep", retry=True).activated == ("deep",)
    assert host.open_ports() == {"fast": 8080, "deep": 8081}


def test_a_retry_loads_one_on_demand_whose_cooldown_is_over(host: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    host.write("fast")
    host.write("deep", residency=tier.ON_DEMAND)
    activate("fast", "deep")
    host.end("llama-tier-deep.service")
    monkeypatch.setattr(systemd, "has_failed", lambda unit, _: unit == "llama-tier-deep.service")
    host.starts.clear()
    assert activate("fast", "deep").activated == ()
    assert host.starts == []
    assert activate("fast", "deep", retry=True).activated == ("deep",)


def test_a_tier_that_has_no_fallback_any_more_has_its_port_and_no_unit_of_it(host: Played) -> None:
    host.write("fast")
    host.write("deep", fallback="fast")
    activate("fast", "deep")
    host.end("llama-tier-deep.service")
    host.states["llama-tier-deep.service"] = "failed"
    host.start(tier.Front("deep").cooldown)
    host.write("deep")
    assert activate("fast", "deep").activated == ("deep",)
    assert host.open_ports() == {"fast": 8080, "deep": 8081}
    assert not [name for name in host.files("deep") if "fallback" in name]
    assert activate("fast", "deep") == Outcome(activated=(), retired=())


def test_a_tier_without_a_fallback_whose_port_is_closed_is_tried_again(host: Played) -> None:
    switched(host)
    host.states["llama-tier-deep.service"] = "failed"
    host.start(tier.Front("deep").cooldown)
    assert host.open_ports() == {"fast": 8080}
    assert activate(*RIVALS).activated == ("deep",)
    assert host.open_ports() == {"fast": 8080, "deep": 8081}
    assert list(host.serving) == ["fast"]


def test_the_way_back_has_all_units_again_and_the_port(host: Played) -> None:
    prove(host, "deep")
    before = host.files("deep")
    host.write("deep", model=BROKEN, port=9000, fallback="fast", residency=tier.ON_DEMAND, rivals=("fast",))
    assert host.files("deep").keys() > before.keys()
    assert "what served before is active again" in refused("deep")
    assert host.files("deep") == before
    assert host.serving == {"deep": before}
    assert host.open_ports() == {"deep": 8081}
    assert host.enabled == enabled("deep")


def test_a_tier_that_left_has_its_port_again_when_another_fails(host: Played) -> None:
    prove(host, "deep")
    host.write("deeper", model=BROKEN)
    refused("deeper")
    assert host.open_ports() == {"deep": 8081}
    assert host.enabled == enabled("deep")
