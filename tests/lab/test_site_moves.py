"""Which tiers move, and how, when the room on the cards changes, on a host that test_site.py provisioned.

The last that is done to a host: it is left with its tiers where they moved.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from labhost import (
    BIG,
    DROP_INS,
    LAB,
    SMALL,
    Run,
    inventory_gpus,
    inventory_tiers,
    main_pids,
    playbook,
    recap,
    ssh_ok,
    status_of,
)

from checker.cards import default_reserved_mib


def spec_of(tier: str) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(ssh_ok(f"cat /etc/llama-tiers/tiers/{tier}.json"))
    return spec


def needed_mib(tier: str) -> int:
    """Return what a tier is predicted to need of its cards, in whole MiB."""
    parts = ("weights_mib", "kv_mib", "compute_mib", "overhead_mib")
    return math.ceil(sum(device[part] for device in spec_of(tier)["devices"] for part in parts))


def test_room_that_comes_and_goes_moves_no_tier_until_it_is_asked_for() -> None:
    deep_wherever_it_fits, full = inventory_tiers(), inventory_gpus()
    deep_wherever_it_fits[1]["candidates"][0]["placement"] = "auto"
    # Room on the first card for fast alone: a layer of deep with the smallest buffers needs some 15 MiB.
    full[0]["margin_mib"] = 8192 - default_reserved_mib(8192) - needed_mib("fast") - 1
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

    Yields what makes the variables of a run with given cards; the lab's own cards are back afterwards.
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


def measured_whole(tiers: list[dict[str, Any]], *arguments: str, name: str = "site.yml") -> Run:
    return playbook(name, "-e", json.dumps({"tiers": tiers}), "-e", "verification_depth=auto", *arguments)


def command_of(tier: str) -> str:
    """Return the command line of the process that serves."""
    return ssh_ok(f"tr '\\0' ' ' </proc/{main_pids()[tier]}/cmdline")


def current_release() -> str:
    return ssh_ok("readlink /opt/llama-tiers/current").strip().removeprefix("releases/")


@pytest.fixture(scope="module")
def accepted_at_1000_tokens_per_second() -> list[dict[str, Any]]:
    """Serve the inventory's tiers with a context that is filled in seconds, measured whole; return them.

    What the host keeps of their speeds says then that deep was far faster, so that whatever comes next is slower, and
    that fast was slow: on a busy machine it may be, with nothing changed.
    """
    tiers = inventory_tiers()
    for tier in tiers:
        tier["context"] = 512
    result = measured_whole(tiers)
    assert result.returncode == 0, result.stdout[-3000:]
    kept = json.loads(ssh_ok("cat /var/lib/llama-tiers/accepted.json"))
    for entry in kept["accepted"].values():
        entry["tokens_per_second"] = 1000.0 if entry["fingerprint"]["placement"]["tensor_split"] == [14, 5] else 1.0
    ssh_ok(f"echo '{json.dumps(kept)}' >/var/lib/llama-tiers/accepted.json")
    return tiers


def test_a_release_that_is_slower_than_what_was_accepted_is_rolled_back_with_all_its_tiers(
    accepted_at_1000_tokens_per_second: list[dict[str, Any]],
) -> None:
    tiers, before = accepted_at_1000_tokens_per_second, current_release()
    folder = "/opt/llama-tiers/releases"
    ssh_ok(f"cd {folder} && cp -a {before} {before}-2 && sed -i 's/{before}/{before}-2/' {before}-2/release.json")
    result = measured_whole(
        tiers, *("-e", f"llama_cpp_rollback_release={before}-2"), *("-e", "verification_roll_back=true"),
        name="playbooks/rollback.yml",
    )  # fmt: skip
    assert result.returncode == 2, result.stdout[-3000:]
    assert f"on release {before} serves again; fast went back too" in result.stdout, result.stdout[-3000:]
    assert current_release() == before
    for name in ("fast", "deep"):
        assert command_of(name).startswith(f"{folder}/{before}/bin/llama-server ")
        assert f"{folder}/{before}/" in ssh_ok(f"systemctl cat llama-tier-{name}")
        assert spec_of(name)["engine"]["release"] == f"{folder}/{before}"
    assert [status_of(8080, "fast"), status_of(8081, "deep")] == ["200", "200"]


def test_a_split_that_is_slower_than_what_was_accepted_is_rolled_back_and_not_tried_again(
    accepted_at_1000_tokens_per_second: list[dict[str, Any]],
) -> None:
    tiers, before = accepted_at_1000_tokens_per_second, main_pids()
    tiers[1]["candidates"][0]["placement"]["tensor_split"] = [13, 6]
    result = measured_whole(tiers)
    assert result.returncode == 2, result.stdout[-3000:]
    said = r"deep: FAIL: generates [\d.]+ tokens/s, 1000\.0 were accepted .* rolled back: .* split 14,5 .* serves again"
    assert re.search(said, result.stdout), result.stdout[-3000:]
    pids = main_pids()
    assert pids["fast"] == before["fast"]
    assert "--tensor-split 14,5 " in command_of("deep")
    assert re.search("--tensor-split 14,5 ", ssh_ok("systemctl cat llama-tier-deep"))
    assert status_of(8081, "deep") == "200"
    status = (LAB / "report/STATUS.md").read_text()
    assert re.search(r"^\| deep +\| FAIL .* layer 14,5 ", status, re.MULTILINE), status
    assert "with split 14,5 on release" in status

    result = measured_whole(tiers)
    assert result.returncode == 2
    assert "deep: was rolled back on" in result.stdout, result.stdout[-3000:]
    assert "`-e verification_accept_slower=true`" in result.stdout
    assert recap(result)["changed"] == 0
    assert main_pids() == pids

    result = measured_whole(tiers, "-e", "verification_accept_slower=true")
    assert result.returncode == 0, result.stdout[-3000:]
    assert "--tensor-split 13,6 " in command_of("deep")
