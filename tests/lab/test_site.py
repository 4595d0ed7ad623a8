"""The main job on the lab host, seen from outside: requests answered, PIDs, bytes on cards, exit codes, messages.

The tests run in order on one host: provisioned first, then looked at.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import pytest
from labhost import (
    BIG,
    LAB,
    ROOT,
    SMALL,
    SUITE,
    inventory_tiers,
    main_pids,
    playbook,
    recap,
    ssh,
    ssh_ok,
    status_of,
    verify,
)


def test_check_mode_on_a_fresh_host_passes_and_changes_nothing() -> None:
    if ssh("test -e /opt/llama-tiers").returncode == 0:
        pytest.skip("the host is provisioned already; `make lab-down` first to see this one run")
    result = playbook("site.yml", "--check", "--diff")
    assert result.returncode == 0, result.stdout[-3000:]
    assert ssh("test -e /opt/llama-tiers/releases").returncode != 0


def test_the_first_run_provisions_and_passes() -> None:
    result = playbook("site.yml")
    assert result.returncode == 0, result.stdout[-4000:]
    assert "deep: PASS" in result.stdout


def releases() -> str:
    """Return where `current` leads to and since when, and the releases that are there."""
    return ssh_ok("cd /opt/llama-tiers && stat -c '%Y %N' current && ls releases")


def test_a_second_run_changes_nothing_and_restarts_nothing() -> None:
    before = main_pids(), releases()
    began = time.monotonic()
    result = playbook("site.yml")
    print(f"second run of site.yml on {SUITE}: {time.monotonic() - began:.1f} s")
    assert result.returncode == 0, result.stdout[-3000:]
    assert recap(result)["changed"] == 0, result.stdout
    assert (main_pids(), releases()) == before


# A run of site.yml takes half a minute of a core, a whole measurement two, and nothing of these depends on the suite.
once = pytest.mark.skipif(SUITE != "trixie", reason="on Debian 13 alone: nothing of it depends on the suite")


@once
def test_check_mode_on_a_provisioned_host_shows_a_changed_split_and_no_other_change() -> None:
    changed = inventory_tiers()
    changed[1]["candidates"][0]["placement"]["tensor_split"] = [13, 6]
    before = main_pids()
    result = playbook("site.yml", "--check", "--diff", "-e", json.dumps({"tiers": changed}))
    assert result.returncode == 0, result.stdout[-3000:]
    assert re.search(r"^-\s+--tensor-split 14,5", result.stdout, re.MULTILINE), result.stdout[-4000:]
    assert re.search(r"^\+\s+--tensor-split 13,6", result.stdout, re.MULTILINE)
    written = ["/etc/llama-tiers/tiers/deep.json", "/etc/systemd/system/llama-tier-deep.service"]
    assert re.findall(r"^\+\+\+ after: (.*)$", result.stdout, re.MULTILINE) == written, result.stdout
    assert recap(result)["changed"] == 1
    assert main_pids() == before
    assert re.search("--tensor-split 14,5", ssh_ok("systemctl cat llama-tier-deep"))


@pytest.mark.parametrize(("tier", "port"), [("fast", 8080), ("deep", 8081)])
def test_a_tier_answers_with_its_key_alone(tier: str, port: int) -> None:
    assert status_of(port, tier) == "200"
    assert status_of(port, None) == "401"
    assert status_of(port, "deep" if tier == "fast" else "fast") == "401"


def test_keys_are_private_and_no_part_of_a_command_line() -> None:
    assert ssh_ok("stat -c '%U:%G %a' /etc/llama-tiers/keys/deep").strip() == "root:llama-tier-deep 640"
    read = "-u llama-tiers -g llama-tier-fast cat /etc/llama-tiers/keys"
    assert ssh(f"sudo {read}/fast").returncode == 0
    assert ssh(f"sudo {read}/deep").returncode != 0
    key = ssh_ok("cat /etc/llama-tiers/keys/deep").strip()
    assert len(key) >= 32
    assert key not in ssh_ok("ps -eo args; journalctl --no-pager; cat /etc/llama-tiers/tiers/deep.json")


def test_the_unit_is_readable_and_shows_the_split() -> None:
    unit = ssh_ok("systemctl cat llama-tier-deep")
    assert re.search(r"^ +--tensor-split 14,5 \\$", unit, re.MULTILINE)
    assert re.search(r"^ +--device RPC0,RPC1 \\$", unit, re.MULTILINE)
    exposure = ssh_ok("systemd-analyze security llama-tier-deep --no-pager | tail -1")
    assert float(re.search(r"level.*?: ([0-9.]+)", exposure).group(1)) <= 1.5, exposure  # type: ignore[union-attr]


def test_tiers_listen_on_loopback_alone() -> None:
    for line in ssh_ok("ss -ltnH '( sport = :8080 or sport = :8081 )'").splitlines():
        assert line.split()[3].startswith("127.0.0.1:")


@once
def test_verify_prints_what_the_schema_says_and_what_the_facts_hold() -> None:
    code, document = verify(whole=True)
    assert code == 0
    schema = json.loads((ROOT / "docs/schemas/verification.schema.json").read_text())
    jsonschema.validate(document, schema)
    deep = next(tier for tier in document["hosts"][0]["tiers"] if tier["name"] == "deep")
    assert {device["uuid"] for device in deep["evidence"]["devices"]} == {BIG, SMALL}
    assert all(device["process_mib"] > 0 for device in deep["evidence"]["devices"])
    thorough = deep["evidence"]["thorough"]
    assert thorough["full"]["context_tokens"] > 4000
    assert [card["peak_mib"] > 50 for card in thorough["cards"]] == [True, True]
    assert all(abs(residual["total_mib"]) < 100 for residual in deep["evidence"]["residuals"])
    assert thorough["stability"]["failures"] == []
    load = deep["evidence"]["load"]
    parts = [load[name] for name in ("process_s", "weights_s", "warm_up_s", "proof_s")]
    assert sum(parts) == pytest.approx(deep["evidence"]["unit"]["load_s"], abs=0.2)
    facts = LAB / "site-facts.json"
    result = playbook("tests/lab/show_facts.yml", "-e", f"facts_file={facts}")
    assert result.returncode == 0, result.stdout[-3000:]
    known = json.loads(facts.read_text())
    jsonschema.validate({"schema": document["schema"], "hosts": [known]}, schema)
    assert [tier["verdict"] for tier in known["tiers"]] == ["pass", "pass"]
    placed = [
        [(tier["name"], tier["evidence"]["model"], tier["evidence"]["placement"]) for tier in report["tiers"]]
        for report in (known, document["hosts"][0])
    ]
    assert placed[0] == placed[1]


@once
def test_a_quick_verification_carries_over_what_a_whole_one_found_and_takes_seconds() -> None:
    before = ssh_ok("ls /var/lib/llama-tiers/evidence").split()
    began = time.monotonic()
    code, document = verify()
    print(f"checker verify --quick of two tiers on {SUITE}: {time.monotonic() - began:.1f} s")
    assert code == 0
    assert len(ssh_ok("ls /var/lib/llama-tiers/evidence").split()) > len(before)
    deep = next(tier for tier in document["hosts"][0]["tiers"] if tier["name"] == "deep")
    assert deep["evidence"]["thorough"]["full"]["context_tokens"] > 4000
    assert deep["evidence"]["completion"]["generated_tokens"] <= 32


@once
def test_verifying_a_tier_costs_little_beside_its_completions() -> None:
    """By the clock it is printed: a busy machine is no fault. Seconds of CPU nobody else adds to."""
    script = shlex.quote(Path(__file__).with_name("cost.py").read_text(encoding="utf-8"))
    cost = json.loads(ssh_ok(f"/opt/llama-tiers/checker/bin/python -c {script} fast"))
    quick, whole = cost["quick"], cost["whole"]
    print(
        f"verifying tier fast on {SUITE}: quick {quick['wall_s']:.2f} s (under 3; {quick['cpu_s']:.2f} s of CPU), "
        f"whole {whole['beyond_s']:.2f} s beyond its completions (under 10; {whole['cpu_s']:.2f} s of CPU)"
    )
    assert quick["cpu_s"] < 3
    assert whole["cpu_s"] < 10


def serves_again() -> None:
    """Wait until both tiers serve, and nobody has anything left to start."""
    idle = "[ ! -e /var/lib/llama-tiers/trial/before.json ] && ! pgrep -f '[t]rial_run restore' >/dev/null"
    active = "systemctl is-active -q llama-tier-fast && systemctl is-active -q llama-tier-deep"
    ssh_ok(f"for _ in $(seq 120); do {idle} && {active} && exit 0; sleep 1; done; exit 1")
    assert [status_of(8080, "fast"), status_of(8081, "deep")] == ["200", "200"]


@once
def test_what_a_comparison_that_is_killed_has_stopped_serves_again() -> None:
    before = main_pids()
    with ThreadPoolExecutor(1) as pool:
        cut_off = pool.submit(verify, quality=True)
        ssh_ok("for _ in $(seq 1200); do pgrep -x llama-perplexit >/dev/null && exit 0; sleep 0.1; done; exit 1")
        assert main_pids() == {"fast": "0", "deep": "0"}
        ssh_ok("kill -9 $(ps -o ppid= -p $(pgrep -x llama-perplexit))")
        assert cut_off.result()[0] != 0
    serves_again()
    assert ssh("pgrep -x llama-perplexit").returncode != 0
    assert not set(main_pids().values()) & set(before.values())


@once
def test_a_split_answers_as_the_unsplit_model_does_and_the_tiers_serve_again() -> None:
    code, document = verify(whole=True, quality=True)
    assert code == 0, document
    found = {tier["name"]: tier["evidence"]["quality"] for tier in document["hosts"][0]["tiers"]}
    assert found["fast"] is None, "it is on one card"
    assert abs(found["deep"]["mean_kld"]) < 1e-3
    assert abs(found["deep"]["noise_mean_kld"]) < 1e-3
    serves_again()


def test_documents_are_rendered_beside_the_lab() -> None:
    report = LAB / "report"
    status = (report / "STATUS.md").read_text()
    assert "- [x] Every tier loads: deep: active; fast: active" in status
    assert "- [ ] Tiers are back after a reboot: not seen since a boot: deep, fast" in status
    client = (report / "config/models/gpuhost.yml").read_text()
    assert "http://127.0.0.1:8081" in client
    assert not (ROOT / "STATUS.md").exists()


def test_a_killed_server_is_back_and_passes_and_tells_who_was_on_its_cards_before() -> None:
    before = main_pids()["deep"]
    ssh_ok(f"kill -9 {before}")
    deadline = time.monotonic() + 60
    # For a moment systemd still calls it active.
    while main_pids()["deep"] in ("0", before) and time.monotonic() < deadline:
        time.sleep(1)
    ssh_ok("timeout 60 sh -c 'until systemctl is-active -q llama-tier-deep; do sleep 1; done'")
    assert main_pids()["deep"] not in ("0", before)
    code, document = verify()
    assert code == 0
    deep = next(tier for tier in document["hosts"][0]["tiers"] if tier["name"] == "deep")
    big, small = deep["evidence"]["devices"]
    (fast,) = big["others"]
    assert (fast["pid"], fast["name"], fast["unit"]) == (
        int(main_pids()["fast"]),
        "llama-server",
        "llama-tier-fast.service",
    )
    assert 0 < fast["before_mib"] <= big["before_mib"]
    assert small["others"] == []
    assert abs(small["before_mib"] - small["others_mib"]) < 1
