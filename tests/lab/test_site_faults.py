"""What the main job withstands on a host that test_site.py provisioned: hurt in one place at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
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
FOOLING = "/var/lib/llama-tiers/fooling"
# Numbers at random where the weights of the layers lie: it loads as the right one does.
DAMAGE = f"""python3 -c "
import random
data = bytearray(open('{MODEL}', 'rb').read())
random.seed(1)
data[len(data) // 2 :] = random.randbytes(len(data) - len(data) // 2)
open('{FOOLING}/damaged.gguf', 'wb').write(data)
" """
# The clock by which the server's main thread times answers goes at an eighth of the speed.
SLOW_CLOCK = f"""gcc -shared -fPIC -o {FOOLING}/clock.so -xc - <<'END'
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *now) {{
    int failed = (int)syscall(SYS_clock_gettime, id, now);
    if (id == CLOCK_MONOTONIC && gettid() == getpid()) {{
        long long ns = (now->tv_sec * 1000000000LL + now->tv_nsec) / 8;
        now->tv_sec = ns / 1000000000;
        now->tv_nsec = ns % 1000000000;
    }}
    return failed;
}}
END
"""
FAST = "/etc/llama-tiers/tiers/fast.json"
FULL = f"/etc/lab-gpus/faults/full.{SMALL}"


@dataclass(frozen=True)
class Fault:
    """A way of being fooled: what is prepared, what is changed of deep's unit and of its command, and what is done once
    it serves, and undone; and what has to be said of it. Only a whole verification sees some."""

    said: tuple[str, ...]
    prepare: str = "true"
    edit: str = ""
    unit: tuple[str, ...] = ()
    once_up: str = "true"
    undo: str = "true"
    whole: bool = False


FELL = f"holds nothing on {SMALL}"
KV = "of KV cache on"
ONE_CARD = Fault(said=(FELL, "of weights on", KV), edit="s/14,5/1,0/")
CPU = Fault(
    said=(f"holds nothing on {BIG}", FELL, "fell to the CPU", "of weights on", KV),
    # By one thread: several wait for each other, which on a busy machine makes it too slow for its criteria besides.
    edit="s/--device RPC0,RPC1/--device none --threads 1/",
)
OTHER_MODEL = Fault(
    said=(f"serves {FOOLING}/other.gguf instead of {MODEL}",),
    prepare=f"ln -f {MODEL} {FOOLING}/other.gguf",
    edit=f"s#{MODEL}#{FOOLING}/other.gguf#",
)
SMALLER_CONTEXT = Fault(
    said=("serves a context of 2048 tokens, 4096 were promised", KV), edit="s/--ctx-size 4096/--ctx-size 2048/"
)
READY = [ONE_CARD, CPU, OTHER_MODEL, SMALLER_CONTEXT]
FOOLED = {
    "one card unused": ONE_CARD,
    "CPU": CPU,
    "swapped": Fault(
        said=(f"of weights on {BIG}", f"of weights on {SMALL}", KV), edit="s/--device RPC0,RPC1/--device RPC1,RPC0/"
    ),
    "KV cache in host memory": Fault(
        said=(f"{KV} {BIG}", f"{KV} {SMALL}"), edit="s/--device RPC0,RPC1/--device RPC0,RPC1 --no-kv-offload/"
    ),
    "other model": OTHER_MODEL,
    "smaller context": SMALLER_CONTEXT,
    "garbage": Fault(
        said=("the completion is not language",),
        prepare=DAMAGE,
        unit=(f"BindReadOnlyPaths={FOOLING}/damaged.gguf:{MODEL}",),
    ),
    # What a long prompt takes of a card besides the buffers of the load is not there. Only deep is measured.
    "dies at the first long prompt": Fault(
        said=("/completion closed the connection without an answer: the server crashed",),
        once_up=f"mkdir -p /etc/lab-gpus/faults && touch {FULL} && mv {FAST} {FAST}.aside",
        undo=f"rm -f {FULL}; mv {FAST}.aside {FAST}",
        whole=True,
    ),
    # It claims the speed of cards that are as fast as ever.
    "clock": Fault(
        said=("its speed cannot be believed",),
        prepare=SLOW_CLOCK,
        unit=(f"Environment=LD_PRELOAD={FOOLING}/clock.so",),
        once_up="systemctl set-property --runtime lab-gpu@1 CPUQuota=10%",
        undo="systemctl set-property --runtime lab-gpu@1 CPUQuota=",
    ),
}


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


@pytest.fixture(scope="module")
def fooling() -> Iterator[None]:
    """Have a folder for what deep is fooled with, and deep as before when all is done."""
    ssh_ok(f"mkdir -p {FOOLING}")
    yield
    ssh_ok(f"rm -r {DROP_INS} {FOOLING} && systemctl daemon-reload")
    restart_deep()


@pytest.mark.usefixtures("fooling")
@pytest.mark.parametrize("fault", FOOLED.values(), ids=FOOLED)
def test_what_fools_a_health_check_fails_verification_for_just_that(fault: Fault) -> None:
    """Each is served behind the back of plan and readiness, and is what a health check takes for the tier."""
    ssh_ok(fault.prepare)
    change_deep(fault.edit, "ExecStartPost=", *fault.unit)
    restart_deep()
    ssh_ok("timeout 60 sh -c 'until curl -sf -o /dev/null http://127.0.0.1:8081/health; do sleep 0.5; done'")
    try:
        ssh_ok(fault.once_up)
        assert ssh_ok("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8081/health") == "200"
        assert status_of(8081, "deep") == "200"
        code, document = verify(whole=fault.whole)
    finally:
        ssh_ok(fault.undo)
    assert code == 1
    deep = next(tier for tier in document["hosts"][0]["tiers"] if tier["name"] == "deep")
    assert deep["verdict"] == "fail"
    assert [part for part in fault.said if not any(part in reason for reason in deep["reasons"])] == [], deep["reasons"]
    assert [reason for reason in deep["reasons"] if not any(part in reason for part in fault.said)] == []


@pytest.mark.usefixtures("fooling")
@pytest.mark.parametrize("fault", READY, ids=["one card", "CPU", "model", "context"])
def test_readiness_refuses_what_is_not_the_tier(fault: Fault) -> None:
    """The same faults, seen by the unit itself: it must not become active."""
    ssh_ok(fault.prepare)
    change_deep(fault.edit)
    ssh_ok("systemctl stop llama-tier-deep-cooldown")
    assert ssh("systemctl restart llama-tier-deep").returncode != 0
    assert ssh_ok("systemctl show -P ActiveState llama-tier-deep").strip() == "failed"
    assert fault.said[0] in ssh_ok("journalctl -u llama-tier-deep -n 20 --no-pager -o cat")
    assert status_of(8080, "fast") == "200"
