"""Measuring a tier: what systemd, the journal, the server and NVML tell becomes evidence, the rest problems."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import certificates
import fake_tier
import pytest
from example_report import report
from fake_host import FRONT, PID, RIVAL, RUN, STRAY, UNIT, Host, gpu, lines

from checker import hardware, systemd
from checker.evidence import (
    DeviceEvidence,
    EngineId,
    Evidence,
    FrontEvidence,
    Holder,
    HostEvidence,
    ModelId,
    Served,
    TlsEvidence,
    UnitEvidence,
)
from checker.measure import PLAIN_PROMPT, QUICK_TOKENS, Depth, front, measure
from checker.ports import Listener
from checker.tier import ON_DEMAND, TierSpec, Tls
from checker.verdict import judge
from inventories import BIG, SMALL

STRAY_BUFFER = ("load_tensors", "CUDA7", "model", 12.5)
NO_NVML = hardware.HardwareError("the NVIDIA kernel module is not loaded: modprobe nvidia")
LOST = hardware.GpuLostError((SMALL["uuid"],), (gpu(BIG), gpu(STRAY)))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[fake_tier.Server]:
    with fake_tier.serving(tmp_path) as played:
        played.counted_s = played.waits_s = 0.05
        yield played


def quick(spec: TierSpec, earlier: Iterable[Mapping[str, Any]] = ()) -> Evidence:
    return measure(spec, earlier, Depth.QUICK, None)


def test_a_good_tier_is_measured_whole(host: Host, server: fake_tier.Server) -> None:
    spec = server.spec
    evidence = quick(spec)

    assert (evidence.tier, evidence.base_url) == ("deep", "http://127.0.0.1:9")
    assert evidence.model == ModelId("tiny", "ab" * 32)
    assert evidence.engine == EngineId(fake_tier.COMMIT, "/opt/llama-tiers/releases/one")
    assert evidence.placement == spec.placement
    assert evidence.unit == UnitEvidence("active", RUN, PID, 3.14)
    assert evidence.served == Served(spec.model.file, "tiny", 4096, "b1-0c1e57098")
    assert evidence.devices == (
        DeviceEvidence(
            *("RPC0", BIG["uuid"], BIG["name"], 184.86, 184.86, 20.0, 41.57, 262.5),
            *(20.0, 41.57, 0.0, 262.5, 1137.5, "00000000:01:00.0", None, "8.6"),
            others=(Holder(12, "ollama", "ollama.service", 1000.0, None),),
        ),
        DeviceEvidence(
            *("RPC1", SMALL["uuid"], SMALL["name"], 50.3, 50.3, 5.0, 33.0, 93.0),
            *(5.0, 33.0, 0.0, 93.0, 1307.0, "00000000:02:00.0", None, "8.6"),
        ),
    )
    assert evidence.host == HostEvidence(170.0, 0.0, 6.0)
    assert evidence.completion is not None
    assert (evidence.completion.prompt, evidence.completion.text) == (PLAIN_PROMPT, fake_tier.TEXT)
    assert (evidence.completion.prompt_tokens, evidence.completion.generated_tokens) == (8, 200)
    assert evidence.completion.prompt_tokens_per_second == pytest.approx(1600)
    assert evidence.completion.generation_tokens_per_second == pytest.approx(199 / 0.045, rel=1e-6)
    assert 0.05 <= evidence.completion.wall_s < 1
    assert evidence.problems == ()
    assert [(each.uuid, each.weights_mib, each.rest_mib, each.total_mib) for each in evidence.residuals] == [
        (BIG["uuid"], 0.0, 16.07, 16.07),
        (SMALL["uuid"], 0.0, 4.7, 4.7),
    ]
    assert (evidence.front, evidence.argv, evidence.thorough) == (FrontEvidence("active"), spec.argv, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", evidence.measured_at)
    assert not evidence.asleep
    assert server.asked[-1][1]["n_predict"] == QUICK_TOKENS
    assert judge(spec, evidence).verdict == "pass"


def test_memory_is_read_after_the_completion(
    host: Host, server: fake_tier.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocated_with_the_first_token(uuid: str) -> tuple[hardware.GpuProcess, ...]:
        answered = any(path == "/completion" for path, _ in server.asked)
        return tuple(host.held[uuid]) if answered else ()

    monkeypatch.setattr(hardware, "processes", allocated_with_the_first_token)
    assert [device.process_mib for device in quick(server.spec).devices] == [262.5, 93.0]


def test_without_nvml_the_rest_is_measured(host: Host, server: fake_tier.Server) -> None:
    host.gpus = NO_NVML
    evidence = quick(server.spec)
    assert [(device.process_mib, device.weights_mib) for device in evidence.devices] == [(None, 184.86), (None, 50.3)]
    assert evidence.completion is not None
    assert evidence.problems == (str(NO_NVML),)


def test_a_lost_card_is_unread_and_the_others_are_not(host: Host, server: fake_tier.Server) -> None:
    host.gpus = LOST
    assert [device.process_mib for device in quick(server.spec).devices] == [262.5, None]


def here(spec: TierSpec) -> TierSpec:
    """Return a tier whose cards are this host's own."""
    return replace(spec, devices=tuple(replace(each, rpc_endpoint=None) for each in spec.devices))


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        (LOST, "the GPU is lost"),
        ((gpu(BIG), gpu(STRAY)), f"is gone, found {BIG['uuid']}, GPU-stray"),
    ],
    ids=["lost", "gone"],
)
def test_a_card_of_the_tier_that_does_not_answer_is_a_problem(
    host: Host, server: fake_tier.Server, gpus: tuple[hardware.Gpu, ...] | hardware.HardwareError, said: str
) -> None:
    host.gpus = gpus
    (problem,) = quick(here(server.spec)).problems
    assert problem.startswith(SMALL["uuid"])
    assert said in problem
    host.gpus = hardware.GpuLostError((STRAY["uuid"],), (gpu(BIG), gpu(SMALL)))
    assert quick(here(server.spec)).problems == (), "another's card"


def test_a_unit_that_has_failed_is_a_problem_with_the_reason(host: Host, server: fake_tier.Server) -> None:
    host.state = systemd.UnitState("failed", "failed", None, RUN, "exit-code", 1_000_000, 0)
    host.journal = lines(["not ready: deep: holds nothing on GPU-1"])
    spec = replace(server.spec, fallback=None)
    assert judge(spec, quick(spec)).reasons == (
        "deep: not ready: deep: holds nothing on GPU-1",
        f"deep: {UNIT} is failed: see journalctl -u {UNIT}, then systemctl restart {UNIT}",
    )


def test_a_unit_whose_last_run_failed_is_one_although_systemd_has_forgotten_it(
    host: Host, server: fake_tier.Server
) -> None:
    host.state = systemd.UnitState("inactive", "dead", None, RUN, "success", 1_000_000, 0)
    host.journal = lines(["not ready: deep: holds nothing on GPU-1"])
    host.failed_before = True
    assert "not ready: deep: holds nothing on GPU-1" in quick(server.spec).problems


def test_a_journal_without_buffers_says_how_to_get_them(host: Host, server: fake_tier.Server) -> None:
    host.journal = lines(["Started llama.cpp tier deep."])
    evidence = quick(server.spec)
    assert [(device.weights_mib, device.process_mib) for device in evidence.devices] == [(None, 262.5), (None, 93.0)]
    assert evidence.host == HostEvidence(None, None, None)
    (problem,) = evidence.problems
    assert problem.startswith(f"the journal of {UNIT} does not tell")
    assert f"systemctl restart {UNIT}" in problem


def test_a_journal_that_forgot_is_replaced_by_what_an_earlier_verification_read(
    host: Host, server: fake_tier.Server
) -> None:
    said = fake_tier.messages([*fake_tier.LOG, STRAY_BUFFER])
    host.journal = lines([fake_tier.as_jsonl(message) for message in said])
    whole = quick(server.spec)
    host.journal = lines(["slot release: id 0"])
    forgotten = quick(server.spec)
    assert forgotten.problems != ()
    documents = [evidence.to_json() for evidence in (forgotten, whole)]
    again = quick(server.spec, documents)
    assert (again.devices, again.host, again.problems) == (whole.devices, whole.host, ())


def test_the_cards_that_the_journal_named_are_remembered_too(host: Host, server: fake_tier.Server) -> None:
    assert isinstance(host.journal, list)
    logged = list(host.journal)
    host.journal += lines(["llama_prepare_model_devices: using device RPC0 (a card) (0000:01:00.0) - 2950 MiB free"])
    named = quick(server.spec)
    assert [device.used_pci_bus_id for device in named.devices] == ["0000:01:00.0", None]
    host.journal = logged
    assert quick(server.spec, [named.to_json()]).devices == named.devices
    assert quick(server.spec).devices[0].used_pci_bus_id is None


def test_an_earlier_run_of_the_unit_tells_nothing_of_this_one(host: Host, server: fake_tier.Server) -> None:
    whole = quick(server.spec).to_json()
    whole["unit"]["invocation_id"] = "f" * 32
    host.journal = lines(["slot release: id 0"])
    assert quick(server.spec, [whole]).devices[0].weights_mib is None


def test_a_journal_that_cannot_be_read_is_a_problem(host: Host, server: fake_tier.Server) -> None:
    host.journal = systemd.SystemdError("journalctl --sync failed (exit 1): no")
    evidence = quick(server.spec)
    assert evidence.problems == ("journalctl --sync failed (exit 1): no",)
    assert [device.weights_mib for device in evidence.devices] == [None, None]


def test_without_systemd_the_server_is_asked_all_the_same(host: Host, server: fake_tier.Server) -> None:
    host.state = systemd.SystemdError("systemctl is not on this host")
    evidence = quick(server.spec)
    assert evidence.unit == UnitEvidence("unknown", "", None, None)
    assert evidence.completion is not None
    assert evidence.problems == ("systemctl is not on this host",)


def test_a_server_that_is_down_is_a_problem(host: Host, server: fake_tier.Server) -> None:
    server.socket.unlink()
    evidence = quick(server.spec)
    assert (evidence.served, evidence.completion) == (None, None)
    assert [device.process_mib for device in evidence.devices] == [262.5, 93.0]
    (problem,) = evidence.problems
    assert problem.startswith(f"nothing answers at {server.address}")
    assert evidence.failures == ()


def test_a_server_that_still_loads_is_asked_nothing_more(host: Host, server: fake_tier.Server) -> None:
    server.loading_answers = 9
    evidence = quick(server.spec)
    assert (evidence.served, evidence.completion) == (None, None)
    assert evidence.problems == (f"{server.address}/health still loads its model (503)",)
    assert server.asked == [("/health", {})]


def test_what_is_served_stays_known_when_the_completion_fails(host: Host, server: fake_tier.Server) -> None:
    server.completion_status = 500
    evidence = quick(server.spec)
    assert evidence.served is not None
    assert evidence.completion is None
    assert "/completion answers 500" in evidence.problems[0]
    assert evidence.failures == evidence.problems


@pytest.mark.parametrize(
    ("active_state", "result", "fails"),
    [("deactivating", "success", False), ("deactivating", "signal", True), ("failed", "core-dump", True)],
)
def test_a_tier_that_gives_way_in_the_middle_has_not_failed(
    host: Host, server: fake_tier.Server, active_state: str, result: str, fails: bool
) -> None:
    """What it leaves unanswered could not be measured all the same."""
    server.dies_at = 512

    def end(tokens: int) -> None:
        assert isinstance(host.state, systemd.UnitState)
        host.state = replace(host.state, active_state=active_state, result=result)

    server.on_prompt = end
    evidence = measure(server.spec, [], Depth.WHOLE, None)
    (problem,) = evidence.problems
    assert problem.endswith("the server crashed")
    assert evidence.failures == ((problem,) if fails else ())


def test_a_card_that_only_nvml_tells_of_stands_last(host: Host, server: fake_tier.Server) -> None:
    host.held[STRAY["uuid"]].append(hardware.GpuProcess(PID, 300.0))
    evidence = quick(server.spec)
    assert [device.name for device in evidence.devices] == ["RPC0", "RPC1", ""]
    assert evidence.devices[2] == DeviceEvidence("", "GPU-stray", "GeForce 7", 0.0, None, None, None, 300.0)


def test_a_device_that_only_the_log_tells_of_stands_last(host: Host, server: fake_tier.Server) -> None:
    assert isinstance(host.journal, list)
    host.journal += lines([fake_tier.as_text("load_tensors:      CUDA7 model buffer size =     7.00 MiB")])
    evidence = quick(server.spec)
    assert evidence.devices[2:] == (DeviceEvidence("CUDA7", "", "", 0.0, 7.0, 0.0, 0.0, None),)


@pytest.mark.parametrize("told", [LOST, NO_NVML], ids=["lost", "no driver"])
@pytest.mark.parametrize("active_state", ["activating", "failed", "inactive"])
def test_a_card_that_does_not_answer_is_the_reason_of_a_tier_without_a_process(
    host: Host, server: fake_tier.Server, active_state: str, told: hardware.HardwareError
) -> None:
    """One that waits for its card has printed nothing, which hides why."""
    host.state = systemd.UnitState(active_state, "", None, RUN, "success", 0, 0)
    host.journal = lines(["Starting llama.cpp tier deep."])
    host.gpus = told
    server.socket.unlink()
    evidence = quick(server.spec)
    assert evidence.unit == UnitEvidence(active_state, RUN, None, None)
    assert [device.process_mib for device in evidence.devices] == [None, None]
    assert judge(server.spec, evidence).reasons[0] == f"deep: {told}"


def test_a_tier_without_a_process_holds_nothing_on_cards_that_answer(host: Host, server: fake_tier.Server) -> None:
    host.state = systemd.UnitState("failed", "failed", None, RUN, "exit-code", 1_000_000, 0)
    host.journal = lines(["not ready: deep: holds nothing on GPU-1"])
    evidence = quick(server.spec)
    assert [device.process_mib for device in evidence.devices] == [None, None]
    assert evidence.problems[0] == "not ready: deep: holds nothing on GPU-1"


@pytest.mark.parametrize(
    ("active_state", "started_us", "active_us", "load_s"),
    [
        ("active", 1_000_000, 3_500_000, 2.5),
        ("activating", 1_000_000, 3_500_000, None),
        ("active", 3_500_000, 1_000_000, None),
        ("active", 0, 1_000_000, None),
    ],
    ids=["active", "not yet", "of an earlier start", "never started"],
)
def test_load_time_is_of_this_start(
    host: Host, server: fake_tier.Server, active_state: str, started_us: int, active_us: int, load_s: float | None
) -> None:
    host.state = systemd.UnitState(active_state, "running", PID, RUN, "success", started_us, active_us)
    assert quick(server.spec).unit.load_s == load_s


@pytest.mark.parametrize(("tokens", "counted_s", "prompt"), [(0, 0.0, 0.0), (1, 0.05, 1600.0)], ids=["none", "first"])
def test_no_token_after_the_first_is_no_speed(
    host: Host, server: fake_tier.Server, tokens: int, counted_s: float, prompt: float
) -> None:
    server.tokens, server.counted_s = tokens, counted_s
    completion = quick(server.spec).completion
    assert completion is not None
    assert (completion.prompt_tokens_per_second, completion.generation_tokens_per_second) == (prompt, 0.0)


def test_a_tier_that_promises_no_speed_is_measured(host: Host, server: fake_tier.Server) -> None:
    spec = replace(server.spec, criteria=replace(server.spec.criteria, min_generation_tokens_per_second=0))
    assert quick(spec).completion is not None


def test_a_whole_measurement_is_made_once_for_each_run_of_the_unit(host: Host, server: fake_tier.Server) -> None:
    server.works_s = 0.001
    first = measure(server.spec, [], Depth.AUTO, None)
    assert first.thorough is not None
    assert first.thorough.warm_completion is not None
    assert [card.uuid for card in first.thorough.cards] == [BIG["uuid"], SMALL["uuid"]]
    assert server.asked[-1][1]["n_predict"] < QUICK_TOKENS, "many small requests come last"

    kept = [json.loads(json.dumps(first.to_json()))]
    count = len(server.asked)
    for depth in (Depth.QUICK, Depth.AUTO):
        assert measure(server.spec, kept, depth, None).thorough == first.thorough
    assert [path for path, _ in server.asked[count:]].count("/completion") == 2

    kept[0]["unit"]["invocation_id"] = "f" * 32
    assert measure(server.spec, kept, Depth.QUICK, None).thorough is None
    assert measure(server.spec, kept, Depth.AUTO, None).thorough is not None


def test_what_was_read_from_storage_is_that_of_the_first_measurement_of_the_run(
    host: Host, server: fake_tier.Server
) -> None:
    first = json.loads(json.dumps(quick(server.spec).to_json()))
    later = copy.deepcopy(first)
    first["load"]["read_mib"], later["load"]["read_mib"] = 12.5, 900.0
    again = measure(server.spec, [later, first], Depth.QUICK, None).load
    assert again and again.read_mib == 12.5
    for document in (later, first):
        document["unit"]["invocation_id"] = "f" * 32
    other = measure(server.spec, [later, first], Depth.QUICK, None).load
    assert other and other.read_mib != 12.5


def test_evidence_of_another_version_or_tier_is_not_carried_over(host: Host, server: fake_tier.Server) -> None:
    server.works_s = 0.001
    whole = json.loads(json.dumps(measure(server.spec, [], Depth.WHOLE, None).to_json()))
    assert measure(server.spec, [{**whole, "tier": "fast"}], Depth.QUICK, None).thorough is None
    older = {key: value for key, value in whole.items() if key != "thorough"}
    assert measure(server.spec, [older], Depth.QUICK, None).thorough is None
    del whole["thorough"]["short"]
    assert measure(server.spec, [whole], Depth.QUICK, None).thorough is None


def test_a_whole_measurement_keeps_the_most_that_was_held(host: Host, server: fake_tier.Server) -> None:
    server.works_s = 0.001

    def grow(tokens: int) -> None:
        if tokens > 1000:
            host.held[SMALL["uuid"]] = [hardware.GpuProcess(PID, 130.0)]

    server.on_prompt = grow
    found = measure(server.spec, [], Depth.WHOLE, None)
    assert found.devices[1].process_mib == 93.0
    assert found.thorough is not None
    assert [card.peak_mib for card in found.thorough.cards] == [262.5, 130.0]
    assert [each.total_mib for each in found.residuals] == [16.07, 41.7]


def test_a_tier_that_is_down_is_not_kept_busy(host: Host, server: fake_tier.Server) -> None:
    server.completion_status = 500
    found = measure(server.spec, [], Depth.WHOLE, None)
    assert found.thorough is None
    assert len(found.problems) == 1


def test_no_card_can_be_read_while_a_tier_is_kept_busy(
    host: Host, server: fake_tier.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(uuid: str) -> hardware.CardState:
        raise NO_NVML

    server.works_s = 0.001
    monkeypatch.setattr(hardware, "read_state", lost)
    found = measure(server.spec, [], Depth.WHOLE, None)
    assert found.problems == ()
    assert found.thorough is not None
    assert found.thorough.unread == (str(NO_NVML),)
    assert [card.peak_mib for card in found.thorough.cards] == [None, None]
    again = measure(server.spec, [found.to_json()], Depth.QUICK, None)
    assert again.thorough == found.thorough, "it is carried over with what it could not read"


def test_quality_is_that_of_just_now_or_of_the_same_command(host: Host, server: fake_tier.Server) -> None:
    quality = report().tiers[0].evidence.quality
    now = measure(server.spec, [], Depth.QUICK, quality)
    assert now.quality == quality
    kept = [json.loads(json.dumps(now.to_json()))]
    assert measure(server.spec, kept, Depth.QUICK, None).quality == quality
    other = replace(server.spec, argv=(*server.spec.argv, "--tensor-split", "12,7"))
    assert measure(other, kept, Depth.QUICK, None).quality is None
    elsewhere = replace(server.spec, environment={"CUDA_VISIBLE_DEVICES": "GPU-elsewhere"})
    assert measure(elsewhere, kept, Depth.QUICK, None).quality is None
    failed = measure(server.spec, [], Depth.QUICK, "quality of the split was not measured: no room")
    assert (failed.quality, failed.problems) == (None, ("quality of the split was not measured: no room",))


def test_what_came_with_a_boot_is_remembered_for_the_same_command(host: Host, server: fake_tier.Server) -> None:
    assert quick(server.spec).booted_at is None
    host.booted = {UNIT}
    seen = quick(server.spec)
    assert seen.booted_at is not None and seen.booted_at <= seen.measured_at
    asleep = replace(server.spec, residency=ON_DEMAND, rivals=("fast",))
    assert (quick(asleep).booted_at, quick(asleep).rivals) == (None, ("fast",)), "its port tells of one on demand"
    host.booted = {FRONT.socket}
    assert quick(asleep).booted_at is not None

    host.booted = systemd.SystemdError("no bus")
    kept = [seen.to_json()]
    assert quick(server.spec, kept).booted_at == seen.booted_at
    assert quick(replace(server.spec, argv=(*server.spec.argv, "--no-mmap")), kept).booted_at is None


@pytest.mark.parametrize("state", ["active", "inactive"])
def test_what_becomes_of_its_rivals_while_a_tier_is_measured_is_evidence(
    host: Host, server: fake_tier.Server, state: str
) -> None:
    assert isinstance(host.front, dict)
    host.front[RIVAL] = state
    rival = replace(server.spec, rivals=("fast",))
    assert quick(rival).rival_states == {"fast": state}
    assert quick(server.spec).rival_states == {}


def switched_to(active_state: str, run: str) -> systemd.UnitState:
    return systemd.UnitState(active_state, "", None, run, "success", 1_000_000, 4_140_000)


@pytest.mark.parametrize(
    "later",
    [switched_to("inactive", ""), switched_to("active", "f" * 32), systemd.SystemdError("no bus")],
    ids=["gave way", "started anew", "not told"],
)
def test_a_tier_that_gives_way_meanwhile_tells_nothing_of_its_rivals(
    host: Host, server: fake_tier.Server, monkeypatch: pytest.MonkeyPatch, later: Any
) -> None:
    """Two units are never asked at the same moment: the rival may have come with the tier's end."""
    asked = systemd.unit_state

    def unit_state(unit: str) -> systemd.UnitState:
        if unit == RIVAL:
            host.state = later
        return asked(unit)

    monkeypatch.setattr(systemd, "unit_state", unit_state)
    found = quick(replace(server.spec, rivals=("fast",)))
    assert (found.unit.active_state, found.rival_states) == ("active", {})


def test_a_tier_that_is_not_loaded_tells_nothing_of_its_rivals(host: Host, server: fake_tier.Server) -> None:
    host.state = switched_to("activating", RUN)
    assert quick(replace(server.spec, rivals=("fast",))).rival_states == {}


def test_memory_that_the_driver_does_not_tell_is_not_nothing(host: Host, server: fake_tier.Server) -> None:
    host.held[BIG["uuid"]] = [hardware.GpuProcess(PID, None), hardware.GpuProcess(12, None)]
    evidence = quick(server.spec)
    assert [device.process_mib for device in evidence.devices] == [None, None]
    (problem,) = evidence.problems
    assert f"{BIG['uuid']}: the driver does not tell how much memory process {PID} holds there" in problem


def test_what_is_before_a_tier_is_evidence(host: Host) -> None:
    spec = fake_tier.spec()
    assert front(spec) == FrontEvidence("active")
    host.front = {}
    assert front(spec) == FrontEvidence("inactive")
    host.listeners += (Listener(77, "nginx", "nginx.service"), Listener(78, "python3", ""))
    found = front(spec)
    assert found is not None
    assert found.stranger == "nginx (pid 77, nginx.service), python3 (pid 78, no unit)"
    host.front = systemd.SystemdError("no bus")
    assert front(spec) is None


def test_a_handshake_is_evidence_of_a_tier_with_tls(host: Host, tmp_path: Path) -> None:
    own, other = certificates.make(tmp_path / "own", days=20), certificates.make(tmp_path / "other")
    with certificates.serving(own) as server:
        over_tls = Tls("0.0.0.0", server.port, ("10.0.0.0/8",), str(own.certificate), str(own.key))
        found = front(fake_tier.spec(tls=over_tls))
        assert found is not None
        assert found.tls == TlsEvidence(own.until.strftime("%Y-%m-%dT%H:%M:%SZ"), 20.0)
        assert quick(fake_tier.spec(tls=over_tls)).base_url == f"https://127.0.0.1:{server.port}"
        found = front(fake_tier.spec(tls=replace(over_tls, certificate=str(other.certificate))))
        assert found is not None
        assert found.tls == TlsEvidence(fault="other", said="self-signed certificate")
    found = front(fake_tier.spec(tls=over_tls))
    assert found is not None
    assert found.tls is not None
    assert (found.tls.fault, found.tls.said) == ("none", "[Errno 111] Connection refused")


def test_a_fallback_in_front_is_evidence_with_the_reason(host: Host) -> None:
    host.state = systemd.UnitState("failed", "failed", None, RUN, "exit-code", 1, 0)
    host.journal = lines(["not ready: deep: out of memory"])
    host.front = {FRONT.stand_in_socket: "active"}
    host.listeners = (Listener(1, "systemd", FRONT.stand_in_socket), Listener(9, "proxy", FRONT.stand_in))
    spec = fake_tier.spec(fallback="fast")
    assert front(spec) == FrontEvidence("active", None, "fast", "not ready: deep: out of memory")
    host.front = {FRONT.socket: "active"}
    assert front(spec) == FrontEvidence("active"), "it answers on its own again"
