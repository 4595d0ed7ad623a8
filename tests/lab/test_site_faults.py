"""What the main job withstands on a host that test_site.py provisioned: hurt in one place at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from labhost import (
    BIG,
    DROP_INS,
    LAB,
    ROOT,
    SMALL,
    inventory_tiers,
    main_pids,
    playbook,
    recap,
    run,
    ssh,
    ssh_ok,
    status_of,
    verify,
)


def change_deep(edit: str, *also: str) -> None:
    """Change the command of deep's unit behind the back of the plan by a sed expression, with further lines."""
    unit = "/etc/systemd/system/llama-tier-deep.service"
    drop_in = f"{DROP_INS}/fault.conf"
    lines = "\\n".join(also)
    ssh_ok(
        f"mkdir -p {DROP_INS} && "
        f"sed -n '/^ExecStart=/,/[^\\\\]$/p' {unit} | sed '{edit}' > /tmp/start && "
        f"printf '[Service]\\nExecStart=\\n%s\\n{lines}\\n' \"$(cat /tmp/start)\" > {drop_in} && "
        "systemctl daemon-reload"
    )


def restart_deep() -> None:
    """Restart deep, and have its port open although it failed before."""
    ssh_ok("systemctl stop llama-tier-deep-cooldown; systemctl restart llama-tier-deep llama-tier-deep.socket")


MODEL = "/var/lib/llama-tiers/models/a5fd3b62230a/gemma-3-270m-it-Q4_K_M.gguf"
# Numbers at random where the weights of the layers lie: it loads as the right one does.
DAMAGE = f"""python3 -c "
import random
data = bytearray(open(\'{MODEL}\', \'rb\').read())
random.seed(1)
data[len(data) // 2 :] = random.randbytes(len(data) - len(data) // 2)
open(\'/var/lib/llama-tiers/damaged.gguf\', \'wb\').write(data)
" """
FOOLED = [
    ("s/14,5/1,0/", (), [f"holds nothing on {SMALL}"]),
    (
        "s/--device RPC0,RPC1/--device none/",
        (),
        [f"holds nothing on {BIG}", f"holds nothing on {SMALL}", "fell to the CPU"],
    ),
    ("s/--device RPC0,RPC1/--device RPC1,RPC0/", (), [f"of weights on {BIG}", f"of weights on {SMALL}"]),
    ("s/--ctx-size 4096/--ctx-size 2048/", (), ["serves a context of 2048 tokens, 4096 were promised"]),
    ("", (f"BindReadOnlyPaths=/var/lib/llama-tiers/damaged.gguf:{MODEL}",), ["the completion is not language"]),
]


class TestWhatAnswersAndIsNotTheTier:
    """Each is served behind the back of plan and readiness, and is what a health check takes for the tier."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def deep_again(cls) -> Iterator[None]:
        """Serve as before when all is done."""
        yield
        ssh_ok(f"rm -r {DROP_INS} /var/lib/llama-tiers/damaged.gguf && systemctl daemon-reload")
        restart_deep()

    @pytest.mark.parametrize(
        ("edit", "also", "said"), FOOLED, ids=["one card unused", "CPU", "swapped", "smaller context", "garbage"]
    )
    def test_fails_although_it_is_healthy_and_answers(self, edit: str, also: tuple[str, ...], said: list[str]) -> None:
        if also:
            ssh_ok(DAMAGE)
        change_deep(edit, "ExecStartPost=", *also)
        restart_deep()
        ssh_ok("timeout 60 sh -c 'until curl -sf -o /dev/null http://127.0.0.1:8081/health; do sleep 0.5; done'")
        assert status_of(8081, "deep") == "200"
        code, document = verify()
        assert code == 1
        deep = next(tier for tier in document["hosts"][0]["tiers"] if tier["name"] == "deep")
        assert deep["verdict"] == "fail"
        missing = [part for part in said if not any(part in reason for reason in deep["reasons"])]
        assert missing == [], deep["reasons"]


@pytest.mark.parametrize("edit", ["s/14,5/1,0/", "s/--device RPC0,RPC1/--device none/"], ids=["one card", "CPU"])
def test_readiness_refuses_a_server_on_the_wrong_cards(edit: str) -> None:
    """The same faults, seen by the unit itself: it must not become active."""
    change_deep(edit)
    try:
        assert ssh("systemctl restart llama-tier-deep").returncode != 0
        assert ssh_ok("systemctl show -P ActiveState llama-tier-deep").strip() == "failed"
        assert SMALL in ssh_ok("journalctl -u llama-tier-deep -n 20 --no-pager -o cat")
        assert status_of(8080, "fast") == "200"
    finally:
        ssh_ok(f"rm -r {DROP_INS} && systemctl daemon-reload")
        restart_deep()


def test_a_stranger_on_a_port_is_named() -> None:
    ssh_ok("systemctl stop llama-tier-fast.socket")
    ssh_ok("systemd-run -q --unit stranger python3 -m http.server 8080 --bind 127.0.0.1 && sleep 1")
    try:
        result = playbook("site.yml")
        assert result.returncode == 2
        taken = r"port 8080 is taken by python3 \(pid \d+, stranger.service\)"
        assert re.search(rf"tier fast: {taken}", result.stdout)
        assert ssh("systemctl start llama-tier-fast.socket").returncode != 0
        assert "result 'resources'" in ssh_ok("journalctl -u llama-tier-fast.socket -n 5 --no-pager -o cat")
        fast = next(tier for tier in verify()[1]["hosts"][0]["tiers"] if tier["name"] == "fast")
        assert any("stranger.service" in reason for reason in fast["reasons"]), fast["reasons"]
        assert status_of(8081, "deep") == "200"
    finally:
        ssh_ok("systemctl stop stranger; systemctl start llama-tier-fast.socket")


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
    inventory = LAB / "nowhere.yml"
    inventory.write_text("gpu_hosts: {hosts: {nowhere: {ansible_host: 127.0.0.1, ansible_port: 9}}}\n")
    result = run(ROOT / ".venv/bin/checker", "verify", "-i", str(inventory))
    assert result.returncode == 2
    assert "nowhere" in result.stdout + result.stderr


def test_all_is_well_again_at_the_end() -> None:
    assert verify()[0] == 0
