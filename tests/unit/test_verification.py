"""Verification: all tiers of a host as one report, one line for each, and the part of it that stays the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from example_report import CARDS, DECISION, PLANNED, report, speed

from checker import checklist, hardware, systemd, tier, verification
from checker.accepted import Reached, Speeds, accept, read, to_json
from checker.evidence import Evidence, FrontEvidence, Quality, Report
from checker.measure import Depth
from inventories import SMALL

DEEP = PLANNED
FAST = replace(PLANNED, name="fast")
DRIVER = hardware.Driver("580.126.09", "13.0")


def measured(planned: tier.TierSpec, earlier: object, depth: Depth, quality: object = None) -> Evidence:
    """Return good evidence of tier `deep`, and that of a card left empty of any other."""
    evidence = report(failed=planned.name != "deep").tiers[0].evidence
    return replace(evidence, tier=planned.name)


def reported(*specs: tier.TierSpec, accepted: Mapping[str, Reached] | None = None) -> Report:
    return verification.report(specs, "tower", [], Depth.WHOLE, accepted or {}, {}, None)


def told(answer: Any) -> Callable[[], Any]:
    def tell() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return tell


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "measure", measured)
    monkeypatch.setattr(hardware, "read_driver", told(DRIVER))
    monkeypatch.setattr(hardware, "read_gpus", told(CARDS))


def test_a_host_passes_when_each_of_its_tiers_does() -> None:
    one = reported(DEEP)
    assert (one.host, one.passed, one.driver, one.gpus) == ("tower", True, DRIVER, CARDS)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one.recorded_at)

    both = reported(FAST, DEEP)
    assert not both.passed
    assert [(found.name, found.verdict.verdict) for found in both.tiers] == [("fast", "fail"), ("deep", "pass")]


def test_a_host_without_tiers_does_not_pass() -> None:
    assert not reported().passed


def test_without_nvml_there_is_a_report_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "read_driver", told(hardware.HardwareError("modprobe nvidia")))
    found = reported(DEEP)
    assert (found.driver, found.gpus, len(found.tiers)) == (None, (), 1)


def test_a_lost_card_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "read_gpus", told(hardware.GpuLostError((SMALL["uuid"],), CARDS[:1])))
    found = reported(DEEP)
    assert (found.driver, found.gpus) == (DRIVER, CARDS[:1])


def test_a_tier_that_passed_is_described_in_one_line() -> None:
    assert verification.describe(report().tiers[0]) == (
        "deep: PASS, 61.0 tokens/s, loaded in 3.1 s; "
        "weights: NVIDIA GeForce RTX 3060 Ti 185 MiB + NVIDIA GeForce GTX 1060 3GB 50 MiB"
    )


def test_a_tier_that_failed_is_described_with_every_reason_and_its_name_once() -> None:
    found = report(unreadable=True).tiers[0]
    line = verification.describe(found)
    assert line.startswith("deep: FAIL: NVML could not be opened; llama-tier-deep.service is failed: see journalctl")
    assert line.count("deep: ") == 1
    assert "\n" not in line
    assert f"holds nothing on {SMALL['uuid']}" in verification.describe(report(failed=True).tiers[0])


def other_measurements(found: Report) -> Report:
    """Return the report of another run of the same tiers: all that is measured differs, the verdict does not."""
    evidence = found.tiers[0].evidence
    assert evidence.completion
    again = replace(
        evidence,
        unit=replace(evidence.unit, main_pid=12, load_s=99.9),
        devices=tuple(replace(device, process_mib=999.9, compute_mib=99.9) for device in evidence.devices),
        completion=replace(evidence.completion, generation_tokens_per_second=99.9, text="Other.", wall_s=9.9),
    )
    tiers = (replace(found.tiers[0], evidence=again),)
    return replace(found, recorded_at="2027-01-01T00:00:00Z", gpus=(), tiers=tiers)


def test_what_is_stable_does_not_change_with_a_measurement() -> None:
    stable = verification.stable(report())
    assert stable == verification.stable(other_measurements(report()))
    assert json.loads(json.dumps(stable))["deep"] == {
        "model": {"name": "tiny", "sha256": "ab" * 32},
        "engine": {"commit": DEEP.engine.commit, "release": "/opt/llama-tiers/releases/one"},
        "placement": DEEP.to_json()["placement"],
        "base_url": "http://127.0.0.1:9",
        "verdict": "pass",
    }


def test_what_is_stable_changes_with_the_verdict() -> None:
    assert verification.stable(report(failed=True))["deep"]["verdict"] == "fail"
    assert SMALL["uuid"] not in json.dumps(verification.stable(report(failed=True))), "a reason is a measurement"


def generating(tokens_per_second: float, **changes: Any) -> Callable[..., Evidence]:
    """Return a measure of tier `deep` that generates with this speed."""

    def measure(planned: tier.TierSpec, earlier: object, depth: Depth, quality: object) -> Evidence:
        evidence = replace(measured(planned, earlier, depth), **changes)
        assert evidence.thorough
        return replace(evidence, thorough=replace(evidence.thorough, short=speed(512, 400.0, tokens_per_second)))

    return measure


OTHER_RELEASE = {"engine": replace(report().tiers[0].evidence.engine, release="/opt/llama-tiers/releases/two")}


@pytest.mark.parametrize(
    ("tokens_per_second", "changes", "passes", "then"),
    [
        (58.0, OTHER_RELEASE, True, 58.0),
        (57.9, OTHER_RELEASE, False, 61.0),
        (90.0, OTHER_RELEASE, True, 90.0),
        (57.9, {"argv": ("llama-server", "--no-mmap")}, False, 61.0),
        (57.9, {"environment": {"GGML_CUDA_FORCE_MMQ": "1"}}, False, 61.0),
        (40.0, {}, True, 61.0),
        (90.0, {}, True, 61.0),
    ],
    ids=["95 percent", "below", "faster", "other flags", "other environment", "same but slower", "same but faster"],
)
def test_a_new_release_has_to_reach_95_percent_of_what_was_accepted(
    monkeypatch: pytest.MonkeyPatch, tokens_per_second: float, changes: dict[str, Any], passes: bool, then: float
) -> None:
    first = reported(DEEP)
    speeds = read(json.loads(json.dumps(to_json(accept(Speeds(), first)))))
    assert [entry.tokens_per_second for entry in speeds.accepted.values()] == [61.0]

    monkeypatch.setattr(verification, "measure", generating(tokens_per_second, **changes))
    found = reported(DEEP, accepted=speeds.accepted)
    assert found.passed is passes
    if not passes:
        (reason,) = found.tiers[0].verdict.reasons
        assert reason.startswith(f"deep: generates 57.9 tokens/s, 61.0 were accepted on {first.recorded_at} (release ")
        assert "/opt/llama-tiers/releases/one, split [13, 6], driver 580.126.09), 95% of them" in reason
    if changes == {} and tokens_per_second < 58:
        assert "with the same release, driver and placement" in found.tiers[0].verdict.notes[0]
    (entry,) = accept(speeds, found).accepted.values()
    assert entry.tokens_per_second == then


def test_a_slower_release_that_is_allowed_is_the_next_ones_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = accept(Speeds(), reported(DEEP))
    monkeypatch.setattr(verification, "measure", generating(30.0, **OTHER_RELEASE))
    allowed = reported(DEEP, accepted={})
    assert allowed.passed
    assert [entry.tokens_per_second for entry in accept(speeds, allowed).accepted.values()] == [30.0]


@pytest.mark.parametrize("change", ["model", "context", "cards"])
def test_another_promise_is_not_held_against_what_was_accepted(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    speeds = accept(Speeds(), reported(DEEP))
    evidence = report().tiers[0].evidence
    changes: dict[str, Any] = {
        "model": {"model": replace(evidence.model, sha256="cd" * 32)},
        "context": {"placement": replace(evidence.placement, ctx_size=8192)},
        "cards": {},
    }[change]
    if change == "cards":
        monkeypatch.setattr(hardware, "read_gpus", told(CARDS[:1]))
    monkeypatch.setattr(verification, "measure", generating(10.0, **changes))
    names = [check.name for check in reported(DEEP, accepted=speeds.accepted).tiers[0].verdict.checks]
    assert "no slower than before" not in names
    assert len(accept(speeds, reported(DEEP)).accepted) == 2


def test_two_tiers_with_the_same_model_have_a_speed_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(planned: tier.TierSpec, earlier: object, depth: Depth, quality: object) -> Evidence:
        return replace(generating(60.0)(DEEP, earlier, depth, None), tier=planned.name)

    monkeypatch.setattr(verification, "measure", both)
    assert len(accept(Speeds(), reported(FAST, DEEP)).accepted) == 2


def test_one_completion_is_no_measure_for_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "measure", lambda *given: replace(measured(*given), thorough=None))
    assert accept(Speeds(), reported(DEEP)) == Speeds()


def test_a_file_of_another_schema_has_accepted_nothing() -> None:
    assert read({"schema": "llama-tiers/accepted/2", "accepted": {"x": {}}}) == read(None) == Speeds()


def test_a_failure_that_was_carried_over_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Depth] = []

    def measure(planned: tier.TierSpec, earlier: object, depth: Depth, quality: object) -> Evidence:
        asked.append(depth)
        evidence = generating(61.0)(planned, earlier, depth, None)
        assert evidence.completion
        text = "!" * 400 if depth is Depth.AUTO else evidence.completion.text
        return replace(evidence, completion=replace(evidence.completion, text=text))

    monkeypatch.setattr(verification, "measure", measure)
    earlier = [report().tiers[0].evidence.to_json()]
    assert verification.report([DEEP], "tower", earlier, Depth.AUTO, {}, {}, None).passed
    assert asked == [Depth.AUTO, Depth.WHOLE]
    assert not verification.report([DEEP], "tower", [], Depth.AUTO, {}, {}, None).passed, "it was measured just now"
    assert asked[2:] == [Depth.AUTO]


def test_what_is_slow_is_measured_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter((1.0, 61.0, 1.0, 1.0))

    def measure(planned: tier.TierSpec, earlier: object, depth: Depth, quality: object) -> Evidence:
        return generating(next(speeds))(planned, earlier, depth, None)

    monkeypatch.setattr(verification, "measure", measure)
    assert verification.report([DEEP], "tower", [], Depth.AUTO, {}, {}, None).passed, "something kept the host busy"
    assert not verification.report([DEEP], "tower", [], Depth.WHOLE, {}, {}, None).passed
    assert next(speeds, None) is None


LAZY = replace(DEEP, residency=tier.ON_DEMAND, rivals=("fast",))
FRONT = FrontEvidence("active", stranger=None)


class Switching:
    """A host of tier `deep`, which is on demand, and tier `fast`, which is pinned, and room for one of them."""

    def __init__(self) -> None:
        self.states = {"fast": "active", "deep": "inactive"}
        self.starts: list[str] = []
        self.measured: list[tuple[str, Depth]] = []
        self.loads = True
        self.strange_files: tuple[str, ...] = ()
        self.booted: set[str] = set()
        self.failed: set[str] = set()
        self.gives_way = False

    @staticmethod
    def tier(unit: str) -> str:
        return unit.removeprefix("llama-tier-").removesuffix(".service")

    def unit_state(self, unit: str) -> systemd.UnitState:
        return systemd.UnitState(self.states[self.tier(unit)], "", None, "", "", 0, 0)

    def is_active(self, unit: str) -> bool:
        return self.states[self.tier(unit)] == "active"

    def start(self, unit: str) -> None:
        name = self.tier(unit)
        self.starts.append(name)
        if not self.loads:
            raise systemd.SystemdError(f"systemctl start {unit} failed (exit 1)")
        self.states |= dict.fromkeys(self.states, "inactive") | {name: "active"}

    def measure(self, planned: tier.TierSpec, earlier: object, depth: Depth, quality: object) -> Evidence:
        self.measured.append((planned.name, depth))
        evidence = replace(report().tiers[0].evidence, tier=planned.name, front=FRONT)
        named = tuple(replace(each, used_pci_bus_id=each.pci_bus_id) for each in evidence.devices)
        evidence = replace(evidence, devices=named)
        if self.gives_way:
            self.states[planned.name] = "inactive"
            evidence = replace(evidence, problems=("nothing answers at unix:/run/api.sock (connection refused)",))
        if isinstance(quality, Quality):
            evidence = replace(evidence, quality=quality)
        seen = {rival: self.states[rival] for rival in planned.rivals}
        return replace(evidence, unit=replace(evidence.unit, active_state=self.states[planned.name]), rival_states=seen)


@pytest.fixture
def switching(monkeypatch: pytest.MonkeyPatch) -> Switching:
    played = Switching()
    monkeypatch.setattr(verification, "measure", played.measure)
    monkeypatch.setattr(verification, "front", lambda spec: FRONT)
    monkeypatch.setattr(verification, "strange_files", lambda spec: played.strange_files)
    monkeypatch.setattr(systemd, "came_with_boot", lambda unit: unit in played.booted)
    monkeypatch.setattr(systemd, "has_failed", lambda unit, _: played.tier(unit) in played.failed)
    for name in ("unit_state", "is_active", "start"):
        monkeypatch.setattr(systemd, name, getattr(played, name))
    return played


def verified(
    *specs: tier.TierSpec, earlier: Report | None = None, depth: Depth = Depth.AUTO, wake: bool = True
) -> Report:
    documents = [json.loads(json.dumps(each.evidence.to_json())) for each in earlier.tiers] if earlier else []
    return verification.report(specs, "tower", documents, depth, {}, {}, None, wake=wake)


def test_a_tier_that_sleeps_is_judged_by_what_was_measured_of_the_same_command(switching: Switching) -> None:
    first = verified(LAZY, FAST)
    switching.starts.clear()
    switching.measured.clear()
    again = verified(LAZY, FAST, earlier=first)
    assert again.passed
    assert (switching.starts, switching.measured) == ([], [("fast", Depth.AUTO)])
    told = again.tiers[0]
    assert told.evidence.asleep
    assert told.evidence.measured_at == first.tiers[0].evidence.measured_at
    assert told.verdict.notes[0].startswith("deep: not loaded now, measured 2026-11-24T15:00:00Z")
    third = verified(LAZY, FAST, earlier=again)
    assert third.tiers[0] == told, "as often as nobody asks for it"
    assert switching.starts == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_tier_that_gives_way_in_the_middle_is_judged_as_one_that_sleeps(switching: Switching, *, fails: bool) -> None:
    first = verified(LAZY, FAST)
    switching.states = {"fast": "inactive", "deep": "active"}
    switching.gives_way = True
    switching.failed = {"deep"} if fails else set()
    again = verified(LAZY, earlier=first)
    assert (again.passed, again.tiers[0].evidence.asleep) == (not fails, not fails)


def test_a_tier_whose_last_load_failed_does_not_sleep(switching: Switching) -> None:
    first = verified(LAZY, FAST)
    switching.failed = {"deep"}
    again = verified(LAZY, FAST, earlier=first)
    assert not again.tiers[0].evidence.asleep
    assert not again.passed


def test_a_quality_that_was_measured_just_now_counts_for_a_tier_that_sleeps(switching: Switching) -> None:
    """`--quality` compares splits also while nobody asks for their tier."""
    first = verified(LAZY)
    documents = [json.loads(json.dumps(first.tiers[0].evidence.to_json()))]
    before = first.tiers[0].evidence.quality
    assert before is not None

    def again(quality: Quality | str) -> Report:
        switching.states["deep"] = "inactive"
        return verification.report([LAZY], "tower", documents, Depth.QUICK, {}, {"deep": quality}, None)

    switching.starts.clear()
    good = again(replace(before, measured_at="2026-11-26T12:00:00Z", mean_kld=3e-6)).tiers[0].evidence
    assert good.asleep and good.quality is not None
    assert (good.quality.measured_at, good.quality.mean_kld) == ("2026-11-26T12:00:00Z", 3e-6)
    unmeasured = again("quality of deep was not measured: a trial has the tiers")
    assert unmeasured.tiers[0].verdict.reasons == ("deep: quality of deep was not measured: a trial has the tiers",)
    assert switching.starts == []
    bad = again(replace(before, mean_kld=0.5))
    assert not bad.passed
    assert "answers differently from the unsplit model" in bad.tiers[0].verdict.reasons[0]


def test_a_tier_that_sleeps_was_seen_since_the_boot_when_its_port_was(switching: Switching) -> None:
    first = verified(LAZY)
    switching.states["deep"] = "inactive"
    assert verified(LAZY, earlier=first).tiers[0].evidence.booted_at is None
    switching.booted = {"llama-tier-deep.socket"}
    again = verified(LAZY, earlier=first)
    seen = again.tiers[0].evidence.booted_at
    assert seen is not None and seen >= again.recorded_at[:10]
    switching.booted = set()
    assert verified(LAZY, earlier=again).tiers[0].evidence.booted_at == seen


def test_a_report_holds_the_decision_and_the_checklist_of_its_tiers() -> None:
    found = verification.report([DEEP], "tower", [], Depth.WHOLE, {}, {}, DECISION)
    assert found.decision == DECISION
    assert found.checklist == checklist.boxes(found.tiers, DECISION)
    assert reported(DEEP).decision is None
    assert verification.report([DEEP], "tower", [], Depth.WHOLE, {}, {}, {}).decision is None


def test_a_model_that_was_replaced_while_its_tier_slept_is_seen(switching: Switching) -> None:
    first = verified(LAZY)
    switching.states["deep"] = "inactive"
    switching.starts.clear()
    switching.strange_files = (LAZY.model.file,)
    verified(LAZY, earlier=first)
    assert switching.starts == ["deep"], "what was measured of another file does not pass"


def test_what_is_before_a_tier_that_sleeps_is_looked_at_now(
    switching: Switching, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = verified(LAZY)
    switching.states["deep"] = "inactive"
    switching.measured.clear()
    monkeypatch.setattr(verification, "front", lambda spec: FrontEvidence("inactive"))
    verified(LAZY, earlier=first)
    assert switching.measured == [("deep", Depth.AUTO)], "a port that is closed does not pass"


def test_a_tier_that_sleeps_fails_without_a_card_of_it_and_is_not_loaded_for_that(
    switching: Switching, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = replace(LAZY, devices=tuple(replace(each, rpc_endpoint=None) for each in LAZY.devices))
    first = verified(lazy, FAST)
    switching.starts.clear()
    lost = hardware.GpuLostError((SMALL["uuid"],), CARDS[:1])
    monkeypatch.setattr(hardware, "read_gpus", told(lost))
    without = verified(lazy, FAST, earlier=first)
    assert without.tiers[0].verdict.reasons == (f"deep: {lost}",)
    documents = [json.loads(json.dumps(found.tiers[0].evidence.to_json())) for found in (without, first)]
    again = verification.report([lazy, FAST], "tower", documents, Depth.WHOLE, {}, {}, None)
    assert again.tiers[0].verdict.reasons == (f"deep: {lost}",), "also when it was so before"
    assert switching.starts == []
    monkeypatch.setattr(hardware, "read_gpus", told(CARDS))
    assert verification.report([lazy, FAST], "tower", documents, Depth.AUTO, {}, {}, None).passed
    assert switching.starts == []


OTHER_COMMANDS: list[dict[str, Any]] = [
    {"argv": ("llama-server", "--no-mmap")},
    {"environment": {"CUDA_VISIBLE_DEVICES": "GPU-2"}},
    {"model": replace(LAZY.model, sha256="cd" * 32)},
]


@pytest.mark.parametrize("changes", OTHER_COMMANDS, ids=["argv", "environment", "model"])
def test_a_tier_that_sleeps_is_loaded_when_its_command_is_another(
    switching: Switching, changes: dict[str, Any]
) -> None:
    first = verified(LAZY, FAST)
    switching.starts.clear()
    found = verified(replace(LAZY, **changes), FAST, earlier=first)
    assert switching.starts == ["deep", "fast"]
    assert not found.tiers[0].evidence.asleep


@pytest.mark.parametrize(
    "spoil",
    [
        lambda evidence: replace(evidence, problems=("the journal does not tell",)),
        lambda evidence: replace(evidence, unit=replace(evidence.unit, active_state="inactive")),
        lambda evidence: replace(evidence, completion=replace(evidence.completion, text="@@@@")),
        lambda evidence: replace(evidence, tier="other"),
        lambda evidence: replace(evidence, thorough=None),
        # As when it was pinned, or by a checker that did not look.
        lambda evidence: replace(evidence, rival_states={}),
    ],
    ids=["problems", "was down", "failed", "other tier", "not whole", "rivals not looked at"],
)
def test_a_tier_that_sleeps_is_loaded_when_what_was_measured_is_not_enough(
    switching: Switching, spoil: Callable[[Evidence], Evidence]
) -> None:
    first = verified(LAZY)
    switching.states["deep"] = "inactive"
    switching.starts.clear()
    spoilt = replace(first, tiers=(replace(first.tiers[0], evidence=spoil(first.tiers[0].evidence)),))
    assert verified(LAZY, earlier=spoilt).passed
    assert switching.starts == ["deep"]


def test_a_whole_measurement_loads_what_sleeps_and_pinned_tiers_come_back(switching: Switching) -> None:
    first = verified(LAZY, FAST)
    switching.starts.clear()
    switching.measured.clear()
    again = verified(LAZY, FAST, earlier=first, depth=Depth.WHOLE)
    assert [name for name, _ in switching.measured] == ["fast", "deep"], "as it serves, before deep stops it"
    assert [told.name for told in again.tiers] == ["deep", "fast"]
    assert again.passed
    assert switching.starts == ["deep", "fast"]
    assert switching.states == {"fast": "active", "deep": "inactive"}


def test_check_mode_is_content_with_what_was_measured_before_anybody_looked_at_rivals(switching: Switching) -> None:
    first = verified(LAZY, FAST)
    before = replace(
        first, tiers=tuple(replace(each, evidence=replace(each.evidence, rival_states={})) for each in first.tiers)
    )
    switching.starts.clear()
    assert verified(LAZY, FAST, earlier=before, wake=False).passed
    assert switching.starts == []


def test_check_mode_loads_nothing(switching: Switching) -> None:
    found = verified(LAZY, FAST, wake=False)
    assert switching.starts == []
    assert [told.verdict.verdict for told in found.tiers] == ["fail", "pass"]
    switching.states["fast"] = "inactive"
    assert not verified(FAST, wake=False).passed
    assert switching.starts == []


def test_a_pinned_tier_that_was_down_is_not_started_by_a_verification(switching: Switching) -> None:
    switching.states["fast"] = "failed"
    assert not verified(FAST).passed
    assert switching.starts == []


@pytest.mark.parametrize("depth", [Depth.QUICK, Depth.WHOLE])
@pytest.mark.parametrize("state", ["failed", "activating"])
def test_a_pinned_tier_that_dies_of_a_verification_is_its_cooldowns_to_start(
    switching: Switching, monkeypatch: pytest.MonkeyPatch, depth: Depth, state: str
) -> None:
    """To start it is to wait for what it died of: a minute for a card that is lost."""

    def dies(planned: tier.TierSpec, *given: Any) -> Evidence:
        switching.states[planned.name] = state
        return switching.measure(planned, *given)

    monkeypatch.setattr(verification, "measure", dies)
    assert not verified(FAST, depth=depth).passed
    assert switching.starts == []


def test_a_tier_on_demand_that_failed_is_not_tried_again(switching: Switching) -> None:
    switching.states["deep"] = "failed"
    assert not verified(LAZY, FAST).passed
    assert switching.starts == []


def test_a_tier_that_cannot_be_loaded_fails_by_what_is_measured_of_it(switching: Switching) -> None:
    switching.loads = False
    found = verified(LAZY, FAST)
    assert [told.verdict.verdict for told in found.tiers] == ["fail", "pass"]
    assert switching.starts == ["deep"]


def test_without_systemd_nothing_is_loaded(switching: Switching, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(unit: str) -> systemd.UnitState:
        raise systemd.SystemdError("systemctl is not on this host")

    monkeypatch.setattr(systemd, "unit_state", absent)
    assert not verified(LAZY).passed
    assert switching.starts == []


def test_a_speed_of_before_is_not_accepted_for_the_driver_of_now(
    switching: Switching, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = verified(LAZY, depth=Depth.WHOLE)
    speeds = accept(Speeds(), first)
    switching.states["deep"] = "inactive"
    monkeypatch.setattr(hardware, "read_driver", told(hardware.Driver("590.1", "13.1")))
    later = verified(LAZY, earlier=first)
    assert later.tiers[0].evidence.asleep
    assert accept(speeds, later) == speeds
