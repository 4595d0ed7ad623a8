"""The verdict: good evidence passes every check, a broken promise fails its own check and says what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from example_report import report
from fake_tier import COMMIT, spec

from checker import tier
from checker.evidence import DeviceEvidence, Evidence, Served
from checker.verdict import garbage, judge, memory_faults, model_faults
from inventories import BIG, SMALL

GOOD = report().tiers[0].evidence
SPEC = spec()
CHECKS = [
    "unit active",
    "reachable",
    "model file",
    "model name",
    "context",
    "engine",
    "weights on RPC0",
    "weights on RPC1",
    "nothing on other devices",
    "weights in host memory",
    f"memory held on {BIG['uuid']}",
    f"memory held on {SMALL['uuid']}",
    "load time",
    "text",
    "generation speed",
    "clock",
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
    ("load time", unit(load_s=120.5), ["120.5 s", "at most 120 s", "raise max_load_s"]),
    ("load time", unit(load_s=None), ["load time is unknown", "at most 120 s"]),
    ("text", completion(text="@#$%^&*" * 20), ["not language", "letters", "try each card alone"]),
    (
        "generation speed",
        completion(generation_tokens_per_second=4.9, wall_s=41.0),
        ["4.9 tokens/s", "at least 5 are promised", "give the faster card more layers"],
    ),
    ("clock", completion(wall_s=3.1), ["counts 3.35 s", "took 3.10 s", "cannot be believed"]),
    ("clock", completion(wall_s=6.1), ["counts 3.35 s", "took 6.10 s"]),
]


@pytest.mark.parametrize(("name", "evidence", "said"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_a_broken_promise_fails_its_check_alone(name: str, evidence: Evidence, said: list[str]) -> None:
    verdict = judge(SPEC, evidence)
    assert [(check.name, check.passed) for check in verdict.checks] == [(check, check != name) for check in CHECKS]
    assert verdict.verdict == "fail"
    (reason,) = verdict.reasons
    assert reason.startswith("deep: ")
    assert [part for part in said if part not in reason] == []


def test_every_check_is_broken_once() -> None:
    assert {name for name, _, _ in BROKEN} == set(CHECKS) - {"reachable"}


def test_a_tier_that_does_not_tell_what_it_serves_is_not_reachable() -> None:
    verdict = judge(SPEC, replace(GOOD, served=None))
    about_served = CHECKS[2:6]
    assert [(check.name, check.passed) for check in verdict.checks] == [
        (name, name != "reachable") for name in CHECKS if name not in about_served
    ]
    assert verdict.reasons == (
        "deep: http://127.0.0.1:9 does not tell what it serves: see journalctl -u llama-tier-deep.service",
    )


def test_no_completion_fails_in_place_of_what_it_would_tell() -> None:
    verdict = judge(SPEC, replace(GOOD, completion=None))
    assert [(check.name, check.passed) for check in verdict.checks] == [
        *((name, True) for name in CHECKS[:-3]),
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


@pytest.mark.parametrize(
    "evidence",
    [
        device(0, weights_mib=184.86 * 1.009),
        device(1, weights_mib=50.30 - 0.9),
        on_host(170.9),
        served(ctx_size=4096 + 255),
        device(0, process_mib=184.86 + 20.0 - 0.9),
        unit(load_s=120.0),
        completion(generation_tokens_per_second=5.0, wall_s=40.1),
        completion(wall_s=3.348 * 0.96),
        completion(wall_s=3.348 * 1.49 + 1),
    ],
    ids=["big weights", "small weights", "host", "context", "held", "load", "speed", "short", "long"],
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


@pytest.mark.parametrize(("parallel", "each"), [("1", 4096), ("2", 2048), ("3", 1365)])
def test_the_context_is_shared_by_the_slots(parallel: str, each: int) -> None:
    promised = replace(SPEC, argv=("llama-server", "--parallel", parallel, "--fit", "off"))
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
