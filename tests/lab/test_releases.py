"""Another release for tiers that serve, on a host that test_site.py provisioned: seen from clients that go on asking.

The host is left as it was.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labhost import LAB, ROOT, SUITE, main_pids, playbook, run, ssh_ok, status_of

TIERS = {"fast": 8080, "deep": 8081}
# The other engine of the table; that of the lab's inventory is 0c1e57098.
OTHER = "b3fed31b9"
# A busy machine takes as long for an answer that waits for nothing.
SLOW_S = 3.0


def links() -> list[str]:
    """Return where `current` and `previous` lead to."""
    return ssh_ok("cd /opt/llama-tiers; readlink current; readlink previous || true").split()


def test_a_release_whose_server_fails_its_test_moves_nothing_and_the_tiers_go_on_serving() -> None:
    tiny = ROOT / "roles/llama_cpp/molecule/faults/files/tiny"
    assert run("scp", "-q", "-r", "-F", LAB / "ssh_config", tiny, "gpuhost:/srv/tiny").returncode == 0
    ssh_ok(
        "cd /srv/tiny && echo '#define LIST_DEVICES_STATUS 1' >status.h && git init -q && git add . && "
        "git -c user.name=test -c user.email=test@example.org commit -q -m broken"
    )
    commit = ssh_ok("git -C /srv/tiny rev-parse HEAD").strip()
    broken = {
        "commit": commit,
        "git": {"url": "file:///srv/tiny/.git"},
        "targets": ["llama-server", "ggml-rpc-server"],
        "cmake_flags": {},
        "split_modes": {"rpc": ["none", "layer"]},
        "flags": {"load_mode": {"mmap": [], "dio": []}, "log": [], "no_ui": []},
    }
    before = links(), main_pids()
    changed = {"engines": {"broken": broken}, "llama_cpp_engine": "broken", "llama_cpp_source": "git"}
    result = playbook("site.yml", "-e", json.dumps(changed))
    assert result.returncode == 2, result.stdout[-3000:]
    assert "llama-server --list-devices failed (exit 1)" in result.stdout, result.stdout[-3000:]
    assert (links(), main_pids()) == before
    assert [status_of(port, tier) for tier, port in TIERS.items()] == ["200", "200"]
    assert ssh_ok("ls /opt/llama-tiers/releases | grep broken").split()[0].endswith(".building")
    ssh_ok(
        "rm -rf /srv/tiny /opt/llama-tiers/releases/broken-* /var/cache/llama-tiers/build/broken-* "
        f"/var/cache/llama-tiers/sources/llama.cpp-{commit[:12]}"
    )


@contextlib.contextmanager
def clients_that_go_on_asking() -> Iterator[list[dict[str, Any]]]:
    """Ask each tier every second from the moment when `current` moves to the end of the block.

    Yields the list that holds every answer after it.
    """
    script = shlex.quote(Path(__file__).with_name("client.py").read_text(encoding="utf-8"))
    command = f"python3 -c {script} {' '.join(f'{tier}={port}' for tier, port in TIERS.items())}"
    answers: list[dict[str, Any]] = []
    with subprocess.Popen(
        ["ssh", "-F", LAB / "ssh_config", "gpuhost", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        try:
            yield answers
        finally:
            told, _ = client.communicate()
    answers += json.loads(told)


def down() -> dict[str, tuple[float, float]]:
    """Return from when to when each tier was down last, in seconds since boot.

    From the moment in which its proxy began to drain it, for what comes then has to wait.
    """
    show = "systemctl show --value -P"
    told = {
        tier: ssh_ok(
            f"{show} ActiveExitTimestampMonotonic llama-tier-{tier}-proxy; "
            f"{show} ActiveEnterTimestampMonotonic llama-tier-{tier}"
        ).split()
        for tier in TIERS
    }
    return {tier: (int(left) / 1e6, int(back) / 1e6) for tier, (left, back) in told.items()}


def slow_while_up(answers: list[dict[str, Any]], away: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Return the answers that took long although their tier was not down meanwhile."""

    def waited(answer: dict[str, Any]) -> bool:
        left, back = away[answer["tier"]]
        return bool(answer["began"] < back and left < answer["began"] + answer["seconds"])

    return [answer for answer in answers if answer["seconds"] > SLOW_S and not waited(answer)]


def longest_wait(answers: list[dict[str, Any]], tier: str) -> float:
    """Return the seconds that the request to a tier took which took longest."""
    return max(float(answer["seconds"]) for answer in answers if answer["tier"] == tier)


def test_tiers_move_to_another_engine_and_back_and_no_request_fails() -> None:
    before, pids = links(), main_pids()
    with clients_that_go_on_asking() as there:
        result = playbook("site.yml", "-e", json.dumps({"llama_cpp_engine": OTHER}))
    assert result.returncode == 0, result.stdout[-4000:]
    other, moved, away_there = links(), main_pids(), down()
    assert other[0].startswith(f"releases/{OTHER}-")
    assert other[1] == before[0]
    assert not set(moved.values()) & set(pids.values())
    with clients_that_go_on_asking() as back:
        result = playbook("playbooks/rollback.yml")
    assert result.returncode == 0, result.stdout[-4000:]
    away_back = down()
    assert links() == [before[0], other[0]]
    assert not set(main_pids().values()) & set(moved.values())
    for answers, away, way in ((there, away_there, f"site.yml to {OTHER}"), (back, away_back, "rollback.yml")):
        told = ", ".join(f"{tier} {longest_wait(answers, tier):.1f} s" for tier in TIERS)
        print(f"{way} on {SUITE}: {len(answers)} requests, longest waits: {told}")
        assert [answer for answer in answers if answer["came"] != "200"] == []
        assert slow_while_up(answers, away) == [], "nobody waits for a tier that is there"
        (_, first_is_back), (second_leaves, _) = sorted(away.values())
        assert first_is_back <= second_leaves, "one tier after the other: nobody waits for both"
