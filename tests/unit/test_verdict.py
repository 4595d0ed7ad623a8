"""The verdict: good evidence passes every check, a broken promise fails its own check and says what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from example_report import PLANNED, card, report, speed
from fake_tier import COMMIT

from checker import tier
from checker.evidence import DeviceEvidence, Evidence, FrontEvidence, Load, Served, Speed, TlsEvidence
from checker.language import garbage
from checker.memory_verdict import memory_faults
from checker.verdict import judge, model_faults, page_cache
from inventories import BIG, SMALL

GOOD = report().tiers[0].evidence
SPEC = PLANNED
CHECKS = [
    "unit active",
    "reachable",
    "port",
    "port open",
    "model file",
    "model name",
    "context",
    "engine",
    "model as fetched",
    "weights on RPC0",
    "weights on RPC1",
    "KV cache on RPC0",
    "KV cache on RPC1",
    "nothing on other devices",
    "weights in host memory",
    f"memory held on {BIG['uuid']}",
    f"memory held on {SMALL['uuid']}",
    f"memory as planned on {BIG['uuid']}",
    f"memory as planned on {SMALL['uuid']}",
    "cards read under load",
    "load time",
    "text",
    "generation speed",
    "bandwidth bound",
    "clock",
    "clock with a short context",
    "clock with a full context",
    "text once warm",
    "stability",
    "memory growth on host",
    "memory growth on cards",
    "noise of the reference",
    "quality of the split",
]


def unit(**changes: Any) -> Evidence:
    return replace(GOOD, unit=replace(GOOD.unit, **changes))


def served(**changes: Any) -> Evidence:
    assert GOOD.served
    return replace(GOOD, served=replace(GOOD.served, **changes))


def device(index: int, **changes: Any) -> Evidence:
    devices = list(GOOD.devices)
    devices[index] = replace(devices[index], **changes)
    return replace(GOOD, devices=tuple(devices))


def also(found: DeviceEvidence) -> Evidence:
    return replace(GOOD, devices=(*GOOD.devices, found))


def completion(**changes: Any) -> Evidence:
    assert GOOD.completion
    return replace(GOOD, completion=replace(GOOD.completion, **changes))


def thorough(**changes: Any) -> Evidence:
    assert GOOD.thorough
    return replace(GOOD, thorough=replace(GOOD.thorough, **changes))


def peak(big_mib: float, small_mib: float = 95.0) -> Evidence:
    return thorough(cards=(card(BIG["uuid"], big_mib), card(SMALL["uuid"], small_mib)))


def stability(**changes: Any) -> Evidence:
    assert GOOD.thorough and GOOD.thorough.stability
    return thorough(stability=replace(GOOD.thorough.stability, **changes))


def lying(found: Speed, factor: float) -> Speed:
    """Return a speed whose requests took longer than the server tells."""
    return replace(found, samples=tuple(replace(one, wall_s=one.wall_s * factor) for one in found.samples))


def quality(**changes: Any) -> Evidence:
    assert GOOD.quality
    return replace(GOOD, quality=replace(GOOD.quality, **changes))


def on_host(weights_mib: float | None) -> Evidence:
    return replace(GOOD, host=replace(GOOD.host, weights_mib=weights_mib))


def failed_checks(evidence: Evidence, promised: tier.TierSpec = SPEC) -> list[str]:
    return [check.name for check in judge(promised, evidence).checks if not check.passed]


def test_good_evidence_passes_every_check() -> None:
    verdict = judge(SPEC, GOOD)
    assert [(check.name, check.passed) for check in verdict.checks] == [(name, True) for name in CHECKS]
    assert (verdict.verdict, verdict.reasons) == ("pass", ())


BROKEN = [
    ("unit active", unit(active_state="activating"), ["is activating", "journalctl -u llama-tier-deep.service"]),
    ("model file", served(model_path="/models/other.gguf"), ["/models/other.gguf", SPEC.model.file, "restart"]),
    ("model name", served(alias="other"), ["'other'", "'tiny'", "systemctl restart llama-tier-deep.service"]),
    ("context", served(ctx_size=4095), ["4095 tokens", "4096 were promised", "restart"]),
    ("context", served(ctx_size=4096 + 256), ["4352 tokens", "4096 were promised"]),
    ("engine", served(build="b1-b3fed31b9"), ["'b1-b3fed31b9'", COMMIT, "restart"]),
    ("engine", served(build="b1-"), ["'b1-'", COMMIT]),
    (
        "model as fetched",
        replace(GOOD, strange_files=("/models/tiny.gguf",)),
        ["/models/tiny.gguf is not, by size and time, what was fetched with sha256 abab", "run site.yml", "restart"],
    ),
    ("weights on RPC0", device(0, weights_mib=187.0), ["187.0 MiB", BIG["uuid"], "184.9 MiB", "--tensor-split"]),
    ("weights on RPC1", device(1, weights_mib=49.2), ["49.2 MiB", SMALL["uuid"], "50.3 MiB", "site.yml"]),
    ("weights on RPC1", device(1, weights_mib=None), ["unknown number of MiB", SMALL["uuid"]]),
    (
        "nothing on other devices",
        also(DeviceEvidence("", "GPU-stray", "GeForce 7", 0.0, None, None, None, 300.0)),
        ["GPU-stray (GeForce 7, 300.0 MiB)", "DeviceAllow of llama-tier-deep.service"],
    ),
    (
        "nothing on other devices",
        also(DeviceEvidence("CUDA7", "", "", 0.0, 0.0, 8.0, 30.0, None)),
        ["CUDA7 (no card of the plan, 30.0 MiB)", "--device"],
    ),
    ("weights in host memory", on_host(171.5), ["171.5 MiB", "170.0 MiB", "fell to the CPU", "--n-gpu-layers"]),
    ("weights in host memory", on_host(None), ["unknown number of MiB", "170.0 MiB"]),
    (f"memory held on {BIG['uuid']}", device(0, process_mib=0.0), ["holds nothing on " + BIG["uuid"], "DeviceAllow"]),
    (
        f"memory held on {BIG['uuid']}",
        device(0, process_mib=203.0),
        ["holds 203.0 MiB on " + BIG["uuid"], "204.9 MiB of weights and KV", "restart"],
    ),
    (f"memory held on {SMALL['uuid']}", device(1, process_mib=0.0), ["holds nothing on " + SMALL["uuid"]]),
    (
        "cards read under load",
        thorough(unread=(f"{SMALL['uuid']}: the GPU is lost",)),
        ["while it worked, a card could not be read to the end", "is not known: " + SMALL["uuid"], "the GPU is lost"],
    ),
    ("load time", unit(load_s=120.5), ["120.5 s", "at most 120 s", "raise max_load_s"]),
    ("load time", unit(load_s=None), ["load time is unknown", "at most 120 s"]),
    ("text", completion(text="@#$%^&*" * 20), ["not language", "letters", "try each card alone"]),
    (
        "generation speed",
        thorough(short=speed(512, 400.0, 4.9)),
        ["4.9 tokens/s", "at least 5 are promised", "give the faster card more layers", "8% of the 62.0 tokens/s"],
    ),
    (
        "bandwidth bound",
        thorough(short=speed(512, 400.0, 102.1)),
        ["counts 102.1 tokens/s", "more than 100.0", "the measurement is wrong"],
    ),
    (
        "clock with a short context",
        thorough(short=lying(speed(512, 400.0, 61.0), 1.3)),
        ["short context", "counts 2.33 s", "cannot be believed"],
    ),
    (
        "clock with a full context",
        thorough(full=lying(speed(4056, 380.0, 55.0), 0.9)),
        ["full context", "counts 11.84 s", "took 10.66 s"],
    ),
    (
        "port",
        replace(GOOD, front=FrontEvidence("active", stranger="nginx (pid 815, nginx.service)")),
        [
            "nginx (pid 815, nginx.service) listens on port 9",
            "not the tier",
            "systemctl restart llama-tier-deep.socket",
        ],
    ),
    (
        "port open",
        replace(GOOD, front=FrontEvidence("inactive")),
        ["llama-tier-deep.socket is inactive", "no client reaches the tier: systemctl start llama-tier-deep.socket"],
    ),
    (
        f"memory as planned on {BIG['uuid']}",
        peak(600.0),
        [
            "holds 600.0 MiB",
            "planned are 246.4 MiB",
            "compute buffers +11.3",
            "nothing explains +342.3",
            "llama_tiers_replan",
        ],
    ),
    (f"memory as planned on {SMALL['uuid']}", peak(266.0, 400.0), ["holds 400.0 MiB", "planned are 88.3 MiB"]),
    ("KV cache on RPC0", device(0, kv_mib=18.9), ["put 18.9 MiB of KV cache on", "planned are 20.0 MiB: compare"]),
    ("KV cache on RPC1", device(1, kv_mib=6.1), ["put 6.1 MiB of KV cache on", SMALL["uuid"], "--cache-type-k"]),
    (
        "text once warm",
        thorough(warm_completion=replace(GOOD.completion, text="!?" * 40)),  # type: ignore[type-var]
        ["not language"],
    ),
    (
        "stability",
        stability(failures=("http://127.0.0.1:9/completion answers 500: out of memory",)),
        ["some of 20 small requests failed", "answers 500: out of memory", "journalctl"],
    ),
    ("memory growth on host", stability(host_growth_mib=1.5), ["on the host grows by 1.50 MiB", "at most 1.0"]),
    ("memory growth on cards", stability(cards_growth_mib=2.0), ["on the cards grows by 2.00 MiB"]),
    ("memory growth on host", stability(host_growth_mib=None), ["its memory on the host", "could not be read"]),
    ("memory growth on cards", stability(cards_growth_mib=None), ["its memory on the cards", "could not be read"]),
    (
        "noise of the reference",
        quality(noise_mean_kld=0.002),
        [f"reference ({BIG['uuid']} alone) differs from itself", "0.002000"],
    ),
    ("quality of the split", quality(mean_kld=0.0011), ["0.001100 (at most 0.001)", "try each card alone"]),
    ("quality of the split", quality(same_top_share=0.98), ["98.00% (at least 99%)"]),
    ("clock", completion(wall_s=3.1), ["counts 3.33 s", "took 3.10 s", "cannot be believed"]),
    ("clock", completion(wall_s=6.1), ["counts 3.33 s", "took 6.10 s"]),
]


@pytest.mark.parametrize(("name", "evidence", "said"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_a_broken_promise_fails_its_check_alone(name: str, evidence: Evidence, said: list[str]) -> None:
    verdict = judge(SPEC, evidence)
    assert [check.name for check in verdict.checks if not check.passed] == [name]
    assert set(CHECKS) - {check.name for check in verdict.checks} <= {
        f"memory as planned on {card['uuid']}" for card in (BIG, SMALL)
    }, "a card that holds nothing has failed already"
    assert verdict.verdict == "fail"
    (reason,) = verdict.reasons
    assert reason.startswith("deep: ")
    assert [part for part in said if part not in reason] == []


def test_every_check_is_broken_once() -> None:
    assert {name for name, _, _ in BROKEN} == set(CHECKS) - {"reachable"}


def test_a_tier_that_does_not_tell_what_it_serves_is_not_reachable() -> None:
    verdict = judge(SPEC, replace(GOOD, served=None))
    about_served = CHECKS[CHECKS.index("model file") : CHECKS.index("weights on RPC0")]
    assert [(check.name, check.passed) for check in verdict.checks] == [
        (name, name != "reachable") for name in CHECKS if name not in about_served
    ]
    assert verdict.reasons == (
        "deep: http://127.0.0.1:9 does not tell what it serves: see journalctl -u llama-tier-deep.service",
    )


def test_a_row_that_broke_off_fails_for_that_alone() -> None:
    broken = stability(failures=("http 500",), host_growth_mib=None, cards_growth_mib=None)
    assert failed_checks(broken) == ["stability"]


def test_no_completion_fails_in_place_of_what_it_would_tell() -> None:
    verdict = judge(SPEC, replace(GOOD, completion=None, thorough=None, quality=None))
    assert [(check.name, check.passed) for check in verdict.checks] == [
        *((name, True) for name in CHECKS[: CHECKS.index("text")] if name != "cards read under load"),
        ("completion", False),
    ]
    assert verdict.reasons == ("deep: gave no completion: see journalctl -u llama-tier-deep.service",)


def test_memory_that_nvml_does_not_tell_is_not_taken_for_right() -> None:
    unread = device(1, process_mib=None)
    assert failed_checks(unread) == ["nothing on other devices", f"memory held on {SMALL['uuid']}"]
    elsewhere, held = judge(SPEC, unread).reasons
    assert "could not be read" in elsewhere
    assert f"what it holds on {SMALL['uuid']} (NVIDIA GeForce GTX 1060 3GB) could not be read" in held


def test_a_card_that_holds_nothing_is_told_although_the_log_is_gone() -> None:
    unlogged = device(0, weights_mib=None, kv_mib=None, compute_mib=None, process_mib=0.0)
    assert failed_checks(unlogged) == ["weights on RPC0", f"memory held on {BIG['uuid']}"]
    assert judge(SPEC, unlogged).reasons[1].startswith(f"deep: holds nothing on {BIG['uuid']}")


def test_a_planned_device_that_is_missing_in_the_evidence_fails() -> None:
    assert failed_checks(replace(GOOD, devices=GOOD.devices[:1])) == [
        "weights on RPC1",
        f"memory held on {SMALL['uuid']}",
    ]


def test_a_tier_that_is_down_says_only_that_after_what_could_not_be_measured() -> None:
    down = report(unreadable=True).tiers[0].evidence
    assert len(failed_checks(down)) > 5
    reasons = judge(SPEC, down).reasons
    assert reasons[0] == "deep: NVML could not be opened"
    assert [reason for reason in reasons[1:] if "llama-tier-deep.service is failed" not in reason] == []
    assert len(reasons) == 2


def test_a_tier_whose_fallback_answers_says_only_that_and_why() -> None:
    front = FrontEvidence("active", fallback="fast", reason="not ready: out of memory")
    for down in (report(unreadable=True).tiers[0].evidence, unit(active_state="activating")):
        found = judge(SPEC, replace(down, front=front))
        assert found.checks[0].name == "not degraded"
        assert not found.checks[0].passed
        (reason,) = found.reasons
        assert reason.startswith("deep: degraded, fast answers on port 9 in its place: not ready: out of memory; mend")
        assert "`systemctl start llama-tier-deep.socket`" in reason
        assert "llama_tiers_retry=true" in reason


TLS = replace(SPEC, tls=tier.Tls("10.0.0.1", 8443, ("10.0.0.0/8",), "/etc/ssl/llm/fullchain.pem", "/k.pem"))


def over_tls(**found: Any) -> Evidence:
    return replace(GOOD, front=FrontEvidence("active", tls=TlsEvidence(**found)))


@pytest.mark.parametrize(
    ("fault", "said", "fix"),
    [
        ("none", "Connection refused", ["serves no certificate", "systemctl restart llama-tier-deep-tls.service"]),
        (
            "other",
            "self-signed certificate",
            ["another certificate than /etc/ssl/llm/fullchain.pem", "systemctl reload llama-tier-deep-tls.service"],
        ),
        (
            "unreadable",
            "/etc/ssl/llm/fullchain.pem cannot be read (No such file or directory)",
            ["needs: put it back, then systemctl reload-or-restart llama-tier-deep-tls.service"],
        ),
        (
            "not of now",
            "/etc/ssl/llm/fullchain.pem: certificate has expired",
            ["is not valid now", "renew it, then systemctl reload llama-tier-deep-tls.service"],
        ),
    ],
)
def test_a_certificate_that_is_not_served_fails_a_tier_with_tls_alone(fault: str, said: str, fix: list[str]) -> None:
    evidence = over_tls(fault=fault, said=said)
    assert failed_checks(evidence, TLS) == ["TLS"]
    (reason,) = judge(TLS, evidence).reasons
    assert reason.startswith(
        "deep: TLS port 8443 was not looked at" if fault == "unreadable" else "deep: TLS port 8443 serves "
    )
    assert [part for part in (said, *fix) if part not in reason] == []
    assert failed_checks(evidence, SPEC) == []


def test_a_certificate_that_ends_soon_is_noted() -> None:
    assert judge(TLS, over_tls(valid_until="2026-12-24T15:00:00Z", days_left=14.0)).notes == judge(SPEC, GOOD).notes
    found = judge(TLS, over_tls(valid_until="2026-12-08T14:00:00Z", days_left=13.9))
    assert found.verdict == "pass"
    assert found.notes[0] == (
        "deep: /etc/ssl/llm/fullchain.pem is valid until 2026-12-08T14:00:00Z: renew it, then "
        "systemctl reload llama-tier-deep-tls.service"
    )


def test_a_tier_that_is_not_loaded_says_from_when_its_evidence_is() -> None:
    found = judge(SPEC, replace(GOOD, asleep=True))
    assert found.verdict == "pass"
    assert found.notes[0] == "deep: not loaded now, measured 2026-11-24T15:00:00Z"
    assert "not loaded" not in str(judge(SPEC, GOOD).notes)


@pytest.mark.parametrize(
    "evidence",
    [
        device(0, weights_mib=184.86 * 1.009),
        device(1, weights_mib=50.30 - 0.9),
        on_host(170.9),
        served(ctx_size=4096 + 255),
        device(0, process_mib=184.86 + 20.0 - 0.9),
        unit(load_s=120.0),
        thorough(short=speed(512, 400.0, 5.0)),
        thorough(short=speed(512, 400.0, 101.9)),
        thorough(short=lying(speed(512, 400.0, 61.0), 1.1)),
        peak(246.43 + 299.0),
        stability(host_growth_mib=1.0, cards_growth_mib=-3.0),
        completion(wall_s=3.348 * 0.96),
        completion(wall_s=3.348 * 1.49 + 1),
    ],
    ids=[
        "big weights",
        "small weights",
        "host",
        "context",
        "held",
        "load",
        "speed",
        "bound",
        "busy",
        "peak",
        "growth",
        "short",
        "long",
    ],
)
def test_what_rounding_and_allocation_explain_passes(evidence: Evidence) -> None:
    assert judge(SPEC, evidence).reasons == ()


def test_weights_that_no_header_foretells_have_to_be_there_all_the_same() -> None:
    unknown = replace(
        SPEC, devices=tuple(replace(device, weights_mib=None) for device in SPEC.devices), host_weights_mib=None
    )
    evidence = replace(
        on_host(9999.0), devices=tuple(replace(device, predicted_weights_mib=None) for device in GOOD.devices)
    )
    assert failed_checks(evidence, unknown) == []
    none_there = replace(evidence, devices=(replace(evidence.devices[0], weights_mib=0.0), evidence.devices[1]))
    assert failed_checks(none_there, unknown) == ["weights on RPC0"]


@pytest.mark.parametrize(("parallel", "each"), [(1, 4096), (2, 2048), (3, 1365)])
def test_the_context_is_shared_by_the_slots(parallel: int, each: int) -> None:
    promised = replace(SPEC, placement=replace(SPEC.placement, parallel=parallel))
    assert failed_checks(served(ctx_size=each), promised) == []
    assert failed_checks(served(ctx_size=each - 1), promised) == ["context"]


def test_faults_of_what_is_served_are_those_of_the_verdict() -> None:
    right = Served(SPEC.model.file, "tiny", 4096, f"b1-{COMMIT[:9]}")
    assert model_faults(SPEC, right) == []
    assert model_faults(SPEC, replace(right, ctx_size=512, alias="other")) == [
        *judge(SPEC, served(alias="other")).reasons,
        *judge(SPEC, served(ctx_size=512)).reasons,
    ]


@pytest.mark.parametrize(
    ("big", "small", "said"),
    [
        (262.0, 93.0, []),
        (183.1, 49.4, []),
        (262.0, 0.0, [f"holds nothing on {SMALL['uuid']} (NVIDIA GeForce GTX 1060 3GB)"]),
        (183.0, 93.0, [f"holds 183.0 MiB on {BIG['uuid']} (NVIDIA GeForce RTX 3060 Ti), planned are 184.9 MiB"]),
        (0.0, 49.2, ["holds nothing on " + BIG["uuid"], "holds 49.2 MiB on " + SMALL["uuid"]]),
    ],
    ids=["good", "within the slack", "nothing", "too little", "both"],
)
def test_faults_of_memory_name_the_card(big: float, small: float, said: list[str]) -> None:
    faults = memory_faults(SPEC, {BIG["uuid"]: big, SMALL["uuid"]: small})
    assert len(faults) == len(said)
    for fault, part in zip(faults, said, strict=True):
        assert fault.startswith(f"deep: {part}")
        assert "--device" in fault


def large(split_mode: str = "layer") -> tier.TierSpec:
    """Return a tier whose first card has 38 layers of a 14B."""
    big, small = SPEC.devices
    devices = (replace(big, weights_mib=6282.0, kv_mib=1216.0, compute_mib=119.0), small)
    return replace(SPEC, devices=devices, placement=replace(SPEC.placement, split_mode=split_mode))


@pytest.mark.parametrize(
    ("held_mib", "passed"),
    [
        (6282 + 1216 + 119 + 250, True),
        (6282 + 1216 + 119, True),
        (6282 + 1216 + 119 - 150, True),
        (6282 + 119 + 250, False),
        (6282 - 2 * 165 + 36 / 38 * 1216 + 119 + 100, False),
    ],
    ids=["with CUDA's own", "without", "a little less", "KV cache in host memory", "two layers on the CPU"],
)
def test_kv_cache_and_buffers_have_to_be_on_the_card_too(held_mib: float, passed: bool) -> None:
    faults = memory_faults(large(), {BIG["uuid"]: held_mib, SMALL["uuid"]: 93.0})
    assert (not faults) == passed
    for fault in faults:
        assert "planned are 6,282.0 MiB of weights and 1,335.0 MiB of KV cache and buffers: compare " in fault


def test_of_row_split_the_weights_alone_count() -> None:
    for held_mib in (6282 + 119, 6282 + 1216 + 119 + 2048):
        assert memory_faults(large("row"), {BIG["uuid"]: held_mib, SMALL["uuid"]: 93.0}) == []


@pytest.mark.parametrize(
    ("held_mib", "passed"),
    [(7617 + 300 + 700, True), (7617 + 300 + 8 * 165 + 8 / 38 * 1216, False)],
    ids=["a card whose CUDA takes more than its prior", "eight layers of the other card"],
)
def test_a_card_that_holds_far_more_than_planned_is_not_ready(held_mib: float, passed: bool) -> None:
    spec = large()
    big, small = spec.devices
    spec = replace(spec, devices=(replace(big, overhead_mib=300.0), small))
    faults = memory_faults(spec, {BIG["uuid"]: held_mib, SMALL["uuid"]: 93.0})
    assert (not faults) == passed
    for fault in faults:
        assert f"holds 9,493.0 MiB on {BIG['uuid']}" in fault
        assert "planned are 7,917.0 MiB with all that CUDA takes: compare --tensor-split, --device, " in fault


LANGUAGE = {
    "english": "Quantum computing uses the laws of quantum mechanics to solve what classical computers cannot.",
    "short": "Yes.",
    "markdown": "**Qubits**\n\n1. *Superposition*: it is 0 and 1 at once.\n2. *Entanglement*: qubits are linked.\n",
    "small model repeats a sentence": "I'm not sure what you mean. " * 12,
    "small model repeats a phrase": "The quantum is a quantum of the quantum. " * 5,
    "german": "Ein Quantencomputer rechnet mit Qubits, die zwei Zustände zugleich einnehmen können.",
    "russian": "Квантовый компьютер использует кубиты, которые могут находиться в двух состояниях одновременно.",
    "greek": "Ένας κβαντικός υπολογιστής χρησιμοποιεί qubits που βρίσκονται σε δύο καταστάσεις ταυτόχρονα.",
    "chinese": "量子计算机利用量子力学的叠加和纠缠来处理信息。它能够更快地解决某些问题。例如分解大整数和模拟分子。",
    "japanese": "量子コンピュータは、重ね合わせともつれという量子力学の性質を利用して計算を行う計算機です。",
    "korean": "양자 컴퓨터는 중첩과 얽힘이라는 양자역학의 성질을 이용하여 계산하는 새로운 종류의 컴퓨터입니다.",
    "arabic": "الحاسوب الكمي يستخدم الكيوبت الذي يمكن أن يكون في حالتين في الوقت نفسه بخلاف البت الكلاسيكي.",
    "hindi": "क्वांटम कंप्यूटर क्यूबिट का उपयोग करते हैं जो एक ही समय में दो अवस्थाओं में हो सकते हैं।",
    "thai": "คอมพิวเตอร์ควอนตัมใช้คิวบิตซึ่งสามารถอยู่ในสองสถานะพร้อมกันได้ ต่างจากบิตแบบดั้งเดิม",
    "persian": "رایانه‌های کوانتومی از کیوبیت‌هایی استفاده می‌کنند که می‌توانند هم‌زمان در دو حالت باشند.",
}

GARBAGE = [
    ("", "empty"),
    (" \n\t ", "empty"),
    ("\ufffd" * 30 + " word" * 30, "30 of 180 characters are not printable"),
    ("abc\x00\x01\x02\x03 def", "4 of 11 characters are not printable"),
    ("?!;:()[]{}<>|/ ab", "only 2 of 17 characters are letters"),
    ("0 1 2 3 4 5 6 7 8 9", "only 0 of 19 characters are letters"),
    ("G" * 200, "200 of 200 letters are 'G'"),
    ("a e a i a o a u " * 4, "16 of 32 letters are 'a'"),
    ("unused " * 40, "40 of 40 words are 'unused'"),
    ("The the THE of and for with from that this the the The tHe thE the", "9 of 16 words are 'the'"),
    ("left right up " * 9, "9 of 27 words are"),
]


@pytest.mark.parametrize("text", LANGUAGE.values(), ids=LANGUAGE)
def test_language_is_not_garbage(text: str) -> None:
    assert garbage(text) is None


@pytest.mark.parametrize(("text", "why"), GARBAGE, ids=[why for _, why in GARBAGE])
def test_garbage_is_told_with_the_reason(text: str, why: str) -> None:
    said = garbage(text)
    assert said is not None
    assert said.startswith(why)


def test_a_quick_measurement_is_judged_by_its_one_completion() -> None:
    quick = replace(completion(generation_tokens_per_second=4.9, wall_s=41.0), thorough=None)
    assert failed_checks(quick) == ["generation speed"]


@pytest.mark.parametrize(("mib", "noted"), [(346.0, False), (347.0, True), (146.5, False), (146.4, True)])
def test_a_plan_that_is_a_little_wrong_is_noted(mib: float, noted: bool) -> None:
    evidence = replace(GOOD, thorough=None, devices=(replace(GOOD.devices[0], process_mib=mib), GOOD.devices[1]))
    evidence = replace(evidence, devices=tuple(replace(one, weights_mib=0.0, kv_mib=0.0) for one in evidence.devices))
    notes = [note for note in judge(SPEC, evidence).notes if "reckons with what was measured" in note]
    assert len(notes) == noted
    assert not noted or f"holds {mib:.1f} MiB on {BIG['uuid']}" in notes[0]


@pytest.mark.parametrize(
    ("held_mib", "before_mib", "others_mib", "told"),
    [
        (100.0, 292.0, 900.0, True),
        (100.0, 900.0, 900.0, False),
        (100.0, None, 900.0, False),
        (400.0, 292.0, 900.0, False),
    ],
    ids=["pushed off", "as before", "not known", "more than planned"],
)
def test_less_than_was_planned_is_explained_by_others_that_came_to_the_card(
    held_mib: float, before_mib: float | None, others_mib: float, told: bool
) -> None:
    changes = {"process_mib": held_mib, "before_mib": before_mib, "others_mib": others_mib, "others": ()}
    evidence = replace(device(0, weights_mib=0.0, kv_mib=0.0, **changes), thorough=None)
    (note,) = [note for note in judge(SPEC, evidence).notes if "reckons with what was measured" in note]
    came = "; others hold 900.0 MiB of it, 292.0 MiB were in use before it was started: the driver does not tell who"
    assert (came in note) == told, note
    assert ("others hold" in note) == told


def test_a_tensor_split_that_is_far_off_is_given_a_remedy_that_helps() -> None:
    tensor = replace(SPEC, placement=replace(SPEC.placement, split_mode="tensor"))
    far = replace(device(0, process_mib=900.0), thorough=None)
    reasons = {spec.placement.split_mode: " ".join(judge(spec, far).reasons) for spec in (SPEC, tensor)}
    assert [mode for mode, said in reasons.items() if "-e llama_tiers_replan=true" in said] == ["layer"]
    assert "no plan learns from split mode tensor: give the cards a larger margin_mib" in reasons["tensor"]


def test_two_devices_on_one_card_are_held_against_the_plan_together() -> None:
    """CUDA takes its share of a card once; the driver tells one figure for all devices that are made of it."""
    both = tuple(
        replace(one, uuid=BIG["uuid"], predicted_overhead_mib=250.0, process_mib=640.0) for one in GOOD.devices
    )
    planned = replace(SPEC, devices=tuple(replace(one, uuid=BIG["uuid"]) for one in SPEC.devices))
    verdict = judge(planned, replace(GOOD, devices=both, thorough=None))
    (check,) = [check for check in verdict.checks if check.name.startswith("memory as planned")]
    assert check.expected.startswith("584.7 MiB")
    assert check.measured == "640.0 MiB = 346.0 of the engine's buffers + 294.0 of CUDA and unexplained"
    assert check.passed


def test_swapped_cards_are_told_by_their_addresses() -> None:
    used = ["0000:01:00.0", "0000:02:00.0"]

    def cuda(addresses: list[str]) -> Evidence:
        devices = zip(GOOD.devices, addresses, strict=True)
        return replace(GOOD, devices=tuple(replace(one, used_pci_bus_id=address) for one, address in devices))

    assert failed_checks(cuda(used)) == []
    assert failed_checks(cuda(used[::-1])) == ["card of RPC0", "card of RPC1"]
    assert "the card at 0000:02:00.0, planned is " + BIG["uuid"] in judge(SPEC, cuda(used[::-1])).reasons[0]


def test_a_card_that_the_log_does_not_name_did_not_pass_unless_it_is_behind_an_rpc_server() -> None:
    assert "card of RPC0" not in {check.name for check in judge(SPEC, GOOD).checks}
    own = replace(SPEC, devices=tuple(replace(device, rpc_endpoint=None) for device in SPEC.devices))
    verdict = judge(own, GOOD)
    assert [check.name for check in verdict.checks if not check.passed] == ["card of RPC0", "card of RPC1"]
    assert f"does not tell which card the engine's RPC0 is, planned is {BIG['uuid']}" in verdict.reasons[0]
    assert f"systemctl restart {SPEC.unit}" in verdict.reasons[0]
    unread = replace(GOOD, devices=tuple(replace(device, pci_bus_id=None) for device in GOOD.devices))
    assert failed_checks(unread, own) == [], "what NVML does not tell fails for what the card holds"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slowed_by": ("power limit", "heat (driver)")}, "was slowed by power limit, heat (driver)"),
        ({"graphics_mhz": 600.0}, "ran its graphics clock at 600 of 1,900 MHz"),
        ({"memory_mhz": 810.0}, "ran its memory clock at 810 of 7,001 MHz"),
        ({"temperature_c": 91.0}, "was 91 degrees Celsius hot"),
        ({"power_w": 200.0}, "took 200 W of the 200 it may"),
        ({"pcie_width": 4}, "has a PCIe link of width 4 where 16 is possible"),
        ({"pcie_generation": 1}, "has a PCIe link of generation 1 where 4 is possible"),
    ],
)
def test_a_tier_far_below_what_is_expected_says_what_the_driver_tells(changes: dict[str, Any], said: str) -> None:
    slow = thorough(short=speed(512, 400.0, 20.0), cards=(card(BIG["uuid"], 262.0, **changes),))
    verdict = judge(SPEC, slow)
    (note,) = verdict.notes
    assert verdict.verdict == "pass"
    assert note.startswith("deep: generates 32% of the 62.0 tokens/s that are expected: ")
    assert f"{BIG['uuid']} ({BIG['name']}) {said}" in note


@pytest.mark.parametrize(("tokens_per_second", "suspect"), [(37.3, False), (37.1, True)])
def test_from_sixty_percent_of_what_is_expected_on_nothing_is_suspected(
    tokens_per_second: float, suspect: bool
) -> None:
    notes = judge(SPEC, thorough(short=speed(512, 400.0, tokens_per_second))).notes
    assert ["of the 62.0 tokens/s that are expected" in note for note in notes] == [True] * suspect


def test_a_slow_tier_whose_cards_are_well_says_that_nothing_was_found() -> None:
    own = replace(SPEC, devices=tuple(replace(device, rpc_endpoint=None) for device in SPEC.devices))
    slow = thorough(short=speed(512, 400.0, 20.0))
    assert "the driver tells no cause" in judge(own, slow).notes[0]
    assert "ggml-rpc-server" in judge(SPEC, slow).notes[0]


@pytest.mark.parametrize(
    ("built", "missing"),
    [(("6.1", "8.6"), []), (("8.0", "6.1"), []), (("8.6",), [SMALL]), (("8.9", "6.1"), [BIG]), ((), [])],
)
def test_kernels_that_the_driver_has_to_compile_are_noted(
    built: tuple[str, ...], missing: list[dict[str, str]]
) -> None:
    assert GOOD.load
    notes = judge(SPEC, replace(GOOD, load=replace(GOOD.load, compiled_for=built))).notes
    assert [card["uuid"] for card in (BIG, SMALL) if any(card["uuid"] in note for note in notes)] == [
        card["uuid"] for card in missing
    ]


@pytest.mark.parametrize(
    ("read_mib", "cache"), [(0.0, "warm"), (24.1, "warm"), (100.0, "partly warm"), (240.0, "cold"), (None, None)]
)
def test_the_page_cache_is_told_by_what_was_read(read_mib: float | None, cache: str | None) -> None:
    assert page_cache(Load(None, None, None, None, read_mib, 241.4, ())) == cache
