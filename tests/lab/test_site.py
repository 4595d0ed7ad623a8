"""The main job on the lab host, seen from outside: requests answered, PIDs, bytes on cards, exit codes, messages.

The tests run in order on one host: provisioned first, then looked at, then hurt in one place at a time.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from labhost import ROOT, SUITE, Run, playbook, run, ssh, ssh_ok

from checker.cards import default_reserved_mib

BIG = "GPU-3060a11a-0000-4000-8000-000000000001"
SMALL = "GPU-10603b00-0000-4000-8000-000000000002"
DROP_INS = "/run/systemd/system/llama-tier-deep.service.d"


def recap(result: Run) -> dict[str, int]:
    """Return the counts of the play recap of gpuhost."""
    line = re.search(r"^gpuhost\s+: (.*)$", result.stdout, re.MULTILINE)
    assert line, result.stdout[-3000:]
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line.group(1))}


def inventory_tiers() -> list[dict[str, Any]]:
    """Return the tiers of the lab's inventory, for a run with one thing changed."""
    result = run("ansible-inventory", "-i", "inventories/lab", "--host", "gpuhost")
    tiers: list[dict[str, Any]] = json.loads(result.stdout)["tiers"]
    return tiers


def inventory_gpus() -> list[dict[str, Any]]:
    """Return the cards of the lab's inventory, for a run with one thing changed."""
    result = run("ansible-inventory", "-i", "inventories/lab", "--host", "gpuhost")
    gpus: list[dict[str, Any]] = json.loads(result.stdout)["gpus"]
    return gpus


def needed_mib(tier: str) -> int:
    """Return what a tier is predicted to need of its cards, in whole MiB."""
    parts = ("weights_mib", "kv_mib", "compute_mib", "overhead_mib")
    return math.ceil(sum(device[part] for device in spec_of(tier)["devices"] for part in parts))


def main_pids() -> dict[str, str]:
    return {tier: ssh_ok(f"systemctl show -P MainPID llama-tier-{tier}").strip() for tier in ("fast", "deep")}


def status_of(port: int, key: str | None) -> str:
    """Return the HTTP status of a one-token completion."""
    header = f'-H "Authorization: Bearer $(cat /etc/llama-tiers/keys/{key})"' if key else ""
    return ssh_ok(
        f"curl -s -o /dev/null -w '%{{http_code}}' {header} http://127.0.0.1:{port}/completion "
        """-d '{"prompt": "1", "n_predict": 1}'"""
    )


def verify() -> tuple[int, dict[str, Any]]:
    """Run `checker verify --format json`; return its exit code and its document."""
    result = run(ROOT / ".venv/bin/checker", "verify", "-i", "inventories/lab", "--format", "json")
    return result.returncode, json.loads(result.stdout) if result.stdout.strip() else {}


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


def test_a_second_run_changes_nothing_and_restarts_nothing() -> None:
    before = main_pids()
    began = time.monotonic()
    result = playbook("site.yml")
    print(f"second run of site.yml on {SUITE}: {time.monotonic() - began:.1f} s")
    assert result.returncode == 0, result.stdout[-3000:]
    assert recap(result)["changed"] == 0, result.stdout
    assert main_pids() == before


def test_check_mode_on_a_provisioned_host_changes_nothing() -> None:
    result = playbook("site.yml", "--check", "--diff")
    assert result.returncode == 0, result.stdout[-3000:]
    assert recap(result)["changed"] == 0, result.stdout


def test_check_mode_shows_a_changed_split() -> None:
    changed = inventory_tiers()
    changed[1]["candidates"][0]["placement"]["tensor_split"] = [13, 6]
    before = main_pids()
    result = playbook("site.yml", "--check", "--diff", "-e", json.dumps({"tiers": changed}))
    assert result.returncode == 0, result.stdout[-3000:]
    assert re.search(r"^-\s+--tensor-split 14,5", result.stdout, re.MULTILINE), result.stdout[-4000:]
    assert re.search(r"^\+\s+--tensor-split 13,6", result.stdout, re.MULTILINE)
    assert main_pids() == before


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
    assert float(re.search(r"level.*?: ([0-9.]+)", exposure).group(1)) <= 2.5, exposure  # type: ignore[union-attr]


def test_tiers_listen_on_loopback_alone() -> None:
    for line in ssh_ok("ss -ltnH '( sport = :8080 or sport = :8081 )'").splitlines():
        assert line.split()[3].startswith("127.0.0.1:")


def test_verify_prints_what_the_schema_says_and_what_the_facts_hold() -> None:
    code, document = verify()
    assert code == 0
    schema = json.loads((ROOT / "docs/schemas/verification.schema.json").read_text())
    jsonschema.validate(document, schema)
    deep = next(tier for tier in document["hosts"][0]["tiers"] if tier["name"] == "deep")
    assert {device["uuid"] for device in deep["evidence"]["devices"]} == {BIG, SMALL}
    assert all(device["process_mib"] > 0 for device in deep["evidence"]["devices"])
    facts = ROOT / ".lab/site-facts.json"
    result = playbook("tests/lab/show_facts.yml", "-e", f"facts_file={facts}")
    assert result.returncode == 0, result.stdout[-3000:]
    known = json.loads(facts.read_text())
    jsonschema.validate({"schema": document["schema"], "hosts": [known]}, schema)
    assert [tier["verdict"] for tier in known["tiers"]] == ["pass", "pass"]


def test_documents_are_rendered_beside_the_lab() -> None:
    report = ROOT / ".lab/report"
    assert "deep" in (report / "STATUS.md").read_text()
    client = (report / "config/models/gpuhost.yml").read_text()
    assert "http://127.0.0.1:8081" in client
    assert not (ROOT / "STATUS.md").exists()


def test_a_killed_server_is_back_and_passes() -> None:
    before = main_pids()["deep"]
    ssh_ok(f"kill -9 {before}")
    deadline = time.monotonic() + 60
    # For a moment systemd still calls it active.
    while main_pids()["deep"] in ("0", before) and time.monotonic() < deadline:
        time.sleep(1)
    ssh_ok("timeout 60 sh -c 'until systemctl is-active -q llama-tier-deep; do sleep 1; done'")
    assert main_pids()["deep"] not in ("0", before)
    assert verify()[0] == 0


def put_all_of_deep_on_the_first_card(also: str) -> None:
    """Change the split of deep's unit behind the back of the plan; `also` is a further line of its [Service]."""
    unit = "/etc/systemd/system/llama-tier-deep.service"
    drop_in = f"{DROP_INS}/fault.conf"
    ssh_ok(
        f"mkdir -p {DROP_INS} && "
        f"sed -n '/^ExecStart=/,/[^\\\\]$/p' {unit} | sed 's/14,5/1,0/' > /tmp/start && "
        f"printf '[Service]\\nExecStart=\\n%s\\n{also}\\n' \"$(cat /tmp/start)\" > {drop_in} && "
        "systemctl daemon-reload"
    )


def restart_deep() -> None:
    """Restart deep, however often it was started before."""
    ssh_ok("systemctl reset-failed llama-tier-deep; systemctl restart llama-tier-deep")


@pytest.fixture
def a_split_of_one_card() -> Iterator[None]:
    """Serve deep with everything on the first card, behind the back of plan and readiness."""
    put_all_of_deep_on_the_first_card("ExecStartPost=")
    restart_deep()
    for _ in range(60):
        if ssh("curl -sf -o /dev/null http://127.0.0.1:8081/health").returncode == 0:
            break
        time.sleep(0.5)
    yield
    ssh_ok(f"rm -r {DROP_INS} && systemctl daemon-reload")
    restart_deep()


@pytest.mark.usefixtures("a_split_of_one_card")
def test_a_split_that_leaves_a_card_empty_fails_although_health_is_200() -> None:
    assert ssh_ok("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8081/health") == "200"
    code, document = verify()
    assert code == 1
    deep = next(tier for tier in document["hosts"][0]["tiers"] if tier["name"] == "deep")
    assert deep["verdict"] == "fail"
    assert any(SMALL in reason for reason in deep["reasons"]), deep["reasons"]


def test_readiness_refuses_a_server_on_the_wrong_cards() -> None:
    """The same fault, seen by the unit itself: it must not become active."""
    put_all_of_deep_on_the_first_card("Restart=no")
    try:
        assert ssh("systemctl restart llama-tier-deep").returncode != 0
        assert ssh_ok("systemctl show -P ActiveState llama-tier-deep").strip() == "failed"
        assert SMALL in ssh_ok("journalctl -u llama-tier-deep -n 20 --no-pager -o cat")
    finally:
        ssh_ok(f"rm -r {DROP_INS} && systemctl daemon-reload")
        restart_deep()


def test_a_stranger_on_a_port_is_named() -> None:
    ssh_ok("systemctl stop llama-tier-fast")
    ssh_ok("systemd-run -q --unit stranger python3 -m http.server 8080 --bind 127.0.0.1 && sleep 1")
    try:
        result = playbook("site.yml")
        assert result.returncode == 2
        assert re.search(r"tier fast: port 8080 is taken by python3 \(pid \d+, stranger.service\)", result.stdout)
    finally:
        ssh_ok("systemctl stop stranger; systemctl start llama-tier-fast")


def test_a_failed_successor_is_rolled_back() -> None:
    """A successor that is refused when it starts: the old self serves again, and the play says so and fails."""
    tiers = inventory_tiers()
    tiers[1]["candidates"][0]["placement"]["tensor_split"] = [13, 6]
    refuse = "if grep -q 13,6 /etc/llama-tiers/tiers/deep.json; then echo not ready: a test refuses it; exit 1; fi"
    ssh_ok(
        f"mkdir -p {DROP_INS} && printf '[Service]\nExecStartPost=/bin/sh -c \"%s\"\n' '{refuse}' "
        f"> {DROP_INS}/fault.conf && systemctl daemon-reload"
    )
    try:
        result = playbook("site.yml", "-e", json.dumps({"tiers": tiers}))
        assert result.returncode == 2
        assert "tier deep did not become ready: not ready: a test refuses it" in result.stdout, result.stdout[-3000:]
        assert "what served before is active again" in result.stdout
        assert status_of(8081, "deep") == "200"
        assert "--tensor-split 14,5" in ssh_ok("systemctl cat llama-tier-deep")
    finally:
        ssh_ok(f"rm -r {DROP_INS} && systemctl daemon-reload")


def test_a_tier_that_cannot_fit_is_refused_with_the_arithmetic_before_anything_is_touched() -> None:
    tiers = inventory_tiers()
    tiers[1]["context"] = 8_388_608
    before = main_pids()
    result = playbook("site.yml", "-e", json.dumps({"tiers": tiers}))
    assert result.returncode == 2
    assert re.search(r"deep: .*GTX 1060 3GB needs [\d,]+ MiB", result.stdout, re.DOTALL), result.stdout[-3000:]
    assert recap(result)["changed"] == 0
    assert main_pids() == before


def test_a_plan_that_the_engine_does_not_share_is_refused_before_anything_restarts() -> None:
    models = yaml.safe_load((ROOT / "catalogue/models.yml").read_text(encoding="utf-8"))["models"]
    model = models["gemma-3-270m-it-q4_k_m"]
    model["header"]["layer_bytes"] = [3 * size for size in model["header"]["layer_bytes"]]
    before = main_pids()
    result = playbook("site.yml", "-e", json.dumps({"models": models}))
    assert result.returncode == 2
    assert re.search(rf"deep: on {BIG} .* llama-fit-params expects 50 MiB of weights", result.stdout), result.stdout[
        -3000:
    ]
    assert main_pids() == before


@pytest.fixture
def deep_wherever_it_fits() -> Iterator[list[dict[str, Any]]]:
    """Leave the placement of deep to the planner; the inventory's own serves again afterwards."""
    tiers = inventory_tiers()
    tiers[1]["candidates"][0]["placement"] = "auto"
    yield tiers
    assert playbook("site.yml").returncode == 0


def spec_of(tier: str) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(ssh_ok(f"cat /etc/llama-tiers/tiers/{tier}.json"))
    return spec


def test_room_that_comes_and_goes_moves_no_tier_until_it_is_asked_for(
    deep_wherever_it_fits: list[dict[str, Any]],
) -> None:
    full = inventory_gpus()
    # Room on the first card for fast alone.
    full[0]["margin_mib"] = 8192 - default_reserved_mib(8192) - needed_mib("fast") - 20
    result = playbook("site.yml", "-e", json.dumps({"tiers": deep_wherever_it_fits, "gpus": full}))
    assert result.returncode == 0, result.stdout[-3000:]
    assert [device["uuid"] for device in spec_of("deep")["devices"]] == [SMALL]
    before = main_pids()

    result = playbook("site.yml", "-e", json.dumps({"tiers": deep_wherever_it_fits}))
    assert result.returncode == 0, result.stdout[-3000:]
    assert recap(result)["changed"] == 0, result.stdout
    assert main_pids() == before
    assert "kept as proven; a new choice would be 19 layers on RTX 3060 Ti" in result.stdout

    result = playbook("site.yml", "-e", json.dumps({"tiers": deep_wherever_it_fits}), "-e", "llama_tiers_replan=true")
    assert result.returncode == 0, result.stdout[-3000:]
    assert [device["uuid"] for device in spec_of("deep")["devices"]] == [BIG]
    assert main_pids()["fast"] == before["fast"]


@pytest.fixture
def each_tier_on_a_card_that_holds_one() -> Iterator[Callable[[str, str], dict[str, Any]]]:
    """Serve fast on the first card and deep on the second, on cards that have room for one and a half tiers.

    Yields what makes the variables of a run with given cards; the lab's own tiers and cards are back afterwards.
    """
    tiers, gpus, room = inventory_tiers(), inventory_gpus(), needed_mib("fast") * 3 // 2

    def variables(fast: str, deep: str) -> dict[str, Any]:
        for tier, card in zip(tiers, (fast, deep), strict=True):
            tier["gpus"] = [card]
            tier["candidates"][0]["placement"] = {"split_mode": "none", "tensor_split": [19]}
        return {"tiers": tiers, "gpus": gpus}

    result = playbook("site.yml", "-e", json.dumps(variables(BIG, SMALL)))
    assert result.returncode == 0, result.stdout[-3000:]
    for gpu, total in zip(gpus, (8192, 3072), strict=True):
        gpu["margin_mib"] = total - default_reserved_mib(total) - room
    # An allocation beyond this fails, whatever the plan believes.
    held = [total - room for total in (8192, 3072)]
    ssh_ok(
        "cp /etc/lab-gpus/cards /tmp/cards && "
        f"sed -i -E '/3060a11a/s/[|]8192[|][0-9]+/|8192|{held[0]}/; /10603b00/s/[|]3072[|][0-9]+/|3072|{held[1]}/' "
        "/etc/lab-gpus/cards"
    )
    yield variables
    ssh_ok("cp /tmp/cards /etc/lab-gpus/cards")
    assert playbook("site.yml").returncode == 0


def test_tiers_swap_cards_that_hold_one_of_them_and_swap_back_when_one_fails(
    each_tier_on_a_card_that_holds_one: Callable[[str, str], dict[str, Any]],
) -> None:
    result = playbook("site.yml", "-e", json.dumps(each_tier_on_a_card_that_holds_one(SMALL, BIG)))
    assert result.returncode == 0, result.stdout[-3000:]
    assert [spec_of(tier)["devices"][0]["uuid"] for tier in ("fast", "deep")] == [SMALL, BIG]
    assert [status_of(8080, "fast"), status_of(8081, "deep")] == ["200", "200"]

    refuse = f"if grep -q {SMALL} /etc/llama-tiers/tiers/deep.json; then echo not ready: a test refuses it; exit 1; fi"
    ssh_ok(
        f"mkdir -p {DROP_INS} && printf '[Service]\nExecStartPost=/bin/sh -c \"%s\"\n' '{refuse}' "
        f"> {DROP_INS}/fault.conf && systemctl daemon-reload"
    )
    try:
        result = playbook("site.yml", "-e", json.dumps(each_tier_on_a_card_that_holds_one(BIG, SMALL)))
        assert result.returncode == 2
        assert "what served before is active again" in result.stdout, result.stdout[-3000:]
        assert "fast had its place and went back too" in result.stdout
        ssh_ok("timeout 60 sh -c 'until systemctl is-active -q llama-tier-fast; do sleep 1; done'")
        assert [spec_of(tier)["devices"][0]["uuid"] for tier in ("fast", "deep")] == [SMALL, BIG]
        assert [status_of(8080, "fast"), status_of(8081, "deep")] == ["200", "200"]
    finally:
        ssh_ok(f"rm -r {DROP_INS} && systemctl daemon-reload")


def test_a_tier_that_left_the_inventory_is_removed_and_comes_back() -> None:
    tiers = inventory_tiers()
    before = main_pids()["deep"]
    result = playbook("site.yml", "-e", json.dumps({"tiers": [tiers[1]]}))
    assert result.returncode == 0, result.stdout[-3000:]
    assert ssh("systemctl cat llama-tier-fast").returncode != 0
    assert ssh("curl -s http://127.0.0.1:8080/health").returncode != 0
    assert main_pids()["deep"] == before
    assert playbook("site.yml").returncode == 0
    assert status_of(8080, "fast") == "200"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"llama_cpp_engine": "b1"}, r"llama_cpp_engine 'b1' is not in the engine table; known engines: .*0c1e57098"),
        ({"tiers": [{"name": "deep"}]}, r"tier deep: candidates is missing"),
    ],
)
def test_a_bad_inventory_is_refused_before_anything_else(change: dict[str, Any], said: str) -> None:
    result = playbook("site.yml", "-e", json.dumps(change))
    assert result.returncode == 2
    assert re.search(said, result.stdout), result.stdout[-3000:]
    assert recap(result)["changed"] == 0


def test_a_missing_card_is_named_by_uuid() -> None:
    ssh_ok(f"mkdir -p /etc/lab-gpus/faults && touch /etc/lab-gpus/faults/missing.{SMALL}")
    try:
        result = playbook("site.yml")
        assert result.returncode == 2
        assert SMALL in result.stdout
        assert BIG in result.stdout  # what was found
    finally:
        ssh_ok(f"rm /etc/lab-gpus/faults/missing.{SMALL}")


def test_a_host_that_cannot_be_reached_is_exit_2() -> None:
    inventory = Path(ROOT / ".lab/nowhere.yml")
    inventory.write_text("gpu_hosts: {hosts: {nowhere: {ansible_host: 127.0.0.1, ansible_port: 9}}}\n")
    result = run(ROOT / ".venv/bin/checker", "verify", "-i", str(inventory))
    assert result.returncode == 2
    assert "nowhere" in result.stdout + result.stderr


def test_all_is_well_again_at_the_end() -> None:
    assert verify()[0] == 0
