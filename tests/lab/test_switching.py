"""Tiers that have no room beside each other: who serves when, seen from a client, on a host that is provisioned.

A pinned tier, one on demand that is its rival, and one on demand that only stands in for the second. Like the other
lab tests they run in order; what is changed is the inventory's own again at the end.
"""

from __future__ import annotations

import json
import re
import shlex
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from labhost import (
    BIG,
    DROP_INS,
    ROOT,
    SMALL,
    SUITE,
    inventory_gpus,
    inventory_tiers,
    playbook,
    recap,
    run,
    ssh,
    ssh_ok,
    tunnel,
    verify,
)

from checker.cards import default_reserved_mib

TIERS = ("fast", "deep", "small")
PORTS = {"fast": 8080, "deep": 8081, "small": 8082}
TLS: dict[str, Any] = {"port": 8443, "certificate": "/etc/ssl/lab/certificate.pem", "key": "/etc/ssl/lab/key.pem"}
TLS_OF_FAST = 8444
IDLE_S, COOLDOWN_S = 4, 3
GONE = "timeout 20 sh -c 'while [ -e /proc/{} ]; do sleep 0.05; done'"
FAILED_UNITS = "systemctl list-units 'llama-tier*' --no-legend --plain --state=failed"
UNITS_UP = "systemctl list-units 'llama-tier*' --no-legend --plain --type=service,socket --state=active,activating"


def variables(**changes: Any) -> dict[str, Any]:
    """Return the variables of a run in which fast and deep exclude each other."""
    tiers, gpus = inventory_tiers(), inventory_gpus()
    fast, deep = tiers
    small = {**fast, "name": "small", "port": PORTS["small"], "residency": "on_demand", "gpus": [gpus[1]["name"]]}
    deep |= {"residency": "on_demand", "fallback": "small", "api": {"tls": TLS}}
    fast |= {"api": {"tls": TLS | {"port": TLS_OF_FAST}}}
    # Room on the first card for one of fast and deep.
    gpus[0]["margin_mib"] = 8192 - default_reserved_mib(8192) - 330
    return {
        "tiers": [fast, deep, small],
        "gpus": gpus,
        "tiers_idle_s": IDLE_S,
        "tiers_residency_s": 0,
        "tiers_cooldown_s": COOLDOWN_S,
        **changes,
    }


def site(**changes: Any) -> Any:
    return playbook("site.yml", "-e", json.dumps(variables(**changes)))


def states() -> dict[str, str]:
    told = ssh(f"systemctl is-active {' '.join(f'llama-tier-{name}' for name in TIERS)}").stdout.split()
    return dict(zip(TIERS, told, strict=True))


def wait_for(tier: str, state: str = "active", seconds: int = 60) -> None:
    ssh_ok(
        f"timeout {seconds} sh -c 'until [ $(systemctl is-active llama-tier-{tier}) = {state} ]; do sleep 0.2; done'"
    )


def ask(tier: str, tokens: int = 1, key: str | None = None, seconds: int = 120) -> dict[str, Any]:
    """Ask a tier by its port, as its clients do; the answer has the seconds that it took as `wall_s`."""
    body = json.dumps({"messages": [{"role": "user", "content": "Say a word."}], "max_tokens": tokens})
    told = ssh(
        f"curl -s -m {seconds} -w '\\n%{{time_total}} %{{http_code}}' "
        f'-H "Authorization: Bearer $(head -1 /etc/llama-tiers/keys/{key or tier})" '
        f"http://127.0.0.1:{PORTS[tier]}/v1/chat/completions -d '{body}'"
    ).stdout
    answer, _, status = told.rpartition("\n")
    took, code = status.split()
    document: dict[str, Any] = json.loads(answer) if code == "200" else {}
    return {**document, "wall_s": float(took), "code": code}


def rivals_up() -> list[str]:
    """Return which of fast and deep have a server process."""
    found = ssh("pgrep -a llama-server | grep -o 'run/llama-tier-[a-z]*' | sort").stdout.split()
    return [name for name in ("deep", "fast") if f"run/llama-tier-{name}" in found]


def on_the_cards() -> set[str]:
    """Return the pids that hold memory of the cards."""
    look = "from checker import hardware as h; print(*(p.pid for g in h.read_gpus() for p in h.processes(g.uuid)))"
    return set(ssh_ok(f"/opt/llama-tiers/checker/bin/python -c '{look}'").split())


def main_pids(*tiers: str) -> set[str]:
    return set(ssh_ok(f"systemctl show -P MainPID {' '.join(f'llama-tier-{tier}' for tier in tiers)}").split())


def journal(tier: str) -> str:
    return ssh_ok(f"journalctl -u llama-tier-{tier} -n 1000 --no-pager -o cat")


def reasons(document: dict[str, Any], tier: str) -> list[str]:
    """Return what a verification has against a tier."""
    found = next(each for each in document["hosts"][0]["tiers"] if each["name"] == tier)
    told: list[str] = found["reasons"]
    return told


def why_small_answers() -> str:
    """Return why `deep` is degraded, by a verification that has nothing else against the tiers."""
    code, document = verify()
    assert code == 1
    [reason] = reasons(document, "deep")
    assert reason.startswith("deep: degraded, small answers on port 8081 "), reason
    assert reasons(document, "fast") == reasons(document, "small") == []
    return reason


@contextmanager
def faults(*names: str) -> Iterator[None]:
    """Have faults of the cards (docs/lab.md) for the block."""
    files = " ".join(f"/etc/lab-gpus/faults/{name}" for name in names)
    ssh_ok(f"touch {files}")
    try:
        yield
    finally:
        ssh_ok(f"rm -f {files}")


@pytest.fixture(scope="module", autouse=True)
def as_before() -> Iterator[None]:
    """Have a certificate on the host, and the inventory's own tiers again at the end."""
    ssh_ok(
        f"mkdir -p {Path(TLS['certificate']).parent}; openssl req -x509 -nodes -days 30 -newkey ec -pkeyopt "
        "ec_paramgen_curve:prime256v1 -subj /CN=lab -addext subjectAltName=IP:127.0.0.1 "
        f"-keyout {TLS['key']} -out {TLS['certificate']} 2>&1"
    )
    yield
    assert playbook("site.yml").returncode == 0
    assert ssh_ok("systemctl list-units --all --plain --no-legend '*-tls.service'") == ""


def test_pinned_tiers_that_exclude_each_other_are_refused_with_the_word_that_helps() -> None:
    tiers = variables()["tiers"]
    for tier in tiers:
        tier["residency"] = "pinned"
    result = site(tiers=tiers)
    assert result.returncode == 2
    assert re.search(r"fast and deep cannot be resident together: .*residency: on_demand", result.stdout, re.DOTALL)
    assert recap(result)["changed"] == 0


def test_site_proves_each_of_them_and_the_pinned_one_serves() -> None:
    result = site()
    assert result.returncode == 0, result.stdout[-4000:]
    # The third one has room beside the pinned one: what was loaded to be proven stays.
    assert states() == {"fast": "active", "deep": "inactive", "small": "active"}
    for name in TIERS:
        assert f"{name}: PASS" in result.stdout, result.stdout[-4000:]
    assert "Conflicts=llama-tier-fast.service" in ssh_ok("systemctl cat llama-tier-deep")


def test_a_second_run_wakes_nobody_and_changes_nothing() -> None:
    before = ssh_ok("systemctl show -P MainPID llama-tier-fast")
    result = site()
    assert result.returncode == 0, result.stdout[-3000:]
    assert recap(result)["changed"] == 0, result.stdout
    assert ssh_ok("systemctl show -P MainPID llama-tier-fast") == before
    assert states()["deep"] == "inactive"


def test_a_request_to_a_cold_tier_is_answered_with_little_beside_its_load() -> None:
    overheads = []
    for _ in range(3):
        wait_for("fast")
        answer = ask("deep")
        assert answer["code"] == "200"
        assert rivals_up() == ["deep"]
        shown = dict(
            line.split("=")
            for line in ssh_ok(
                "systemctl show llama-tier-deep -p ExecMainStartTimestampMonotonic -p ActiveEnterTimestampMonotonic"
            ).splitlines()
        )
        load_s = (int(shown["ActiveEnterTimestampMonotonic"]) - int(shown["ExecMainStartTimestampMonotonic"])) / 1e6
        answer_s = (answer["timings"]["prompt_ms"] + answer["timings"]["predicted_ms"]) / 1000
        overheads.append(round(answer["wall_s"] - load_s - answer_s, 2))
        wait_for("deep", "inactive")
    print(f"first request to a cold tier on {SUITE}: {min(overheads):.2f} s beside load and answer; all: {overheads}")


@pytest.mark.parametrize(("stream", "over_tls"), [(False, False), (True, False), (True, True)])
def test_the_openai_client_is_answered_by_a_cold_tier(*, stream: bool, over_tls: bool) -> None:
    wait_for("fast")
    trusted = ssl.create_default_context(cadata=ssh_ok(f"cat {TLS['certificate']}"))
    key = ssh_ok("head -1 /etc/llama-tiers/keys/deep").strip()
    question: Any = {"model": "deep", "messages": [{"role": "user", "content": "Say a word."}], "max_tokens": 16}
    # Else it may end its answer before it has begun.
    question["temperature"] = 0
    with tunnel(TLS["port"] if over_tls else PORTS["deep"]) as url, openai.DefaultHttpxClient(verify=trusted) as client:
        base_url = f"{url.replace('http:', 'https:') if over_tls else url}/v1"
        known: dict[str, Any] = {"base_url": base_url, "max_retries": 0, "timeout": 120, "http_client": client}
        completions = openai.OpenAI(api_key=key, **known).chat.completions
        if stream:
            chunks = [chunk.choices[0] for chunk in completions.create(**question, stream=True) if chunk.choices]
            assert len(chunks) > 2
            text, finished = "".join(chunk.delta.content or "" for chunk in chunks), chunks[-1].finish_reason
        else:
            answer = completions.create(**question)
            assert answer.model == "gemma-3-270m-it-q4_k_m"
            text, finished = answer.choices[0].message.content or "", answer.choices[0].finish_reason
        assert text.strip()
        assert finished in ("stop", "length")
        assert rivals_up() == ["deep"]
        stranger = openai.OpenAI(api_key="wrong", **known)
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(**question)
    wait_for("fast", seconds=IDLE_S + 30)


def test_the_pinned_tier_comes_back_once_nobody_asks() -> None:
    assert ask("deep")["code"] == "200"
    assert states()["fast"] == "inactive"
    wait_for("fast", seconds=IDLE_S + 30)
    assert rivals_up() == ["fast"]


def test_a_start_that_gives_way_to_a_rival_is_no_failure() -> None:
    wait_for("fast")
    # At any moment: also while systemd prepares the sandbox of a command of the unit, which it does not tell of.
    for moment in (0.0, 0.1, 0.2, 0.4, 0.8):
        ssh_ok(f"systemctl start --no-block llama-tier-deep; sleep {moment}; systemctl start llama-tier-fast")
        assert states()["deep"] == "inactive", moment
    assert ask("deep")["code"] == "200"
    wait_for("fast", seconds=IDLE_S + 30)


@pytest.mark.parametrize("when", ["ExecStartPre", "ExecStartPost"])
@pytest.mark.parametrize(("how", "state"), [("systemctl start llama-tier-fast", "inactive"), ("kill -9", "failed")])
def test_a_start_that_is_interrupted_in_a_command_gives_way_and_one_that_is_killed_has_failed(
    when: str, how: str, state: str
) -> None:
    """What dies of SIGTERM is as a process in which systemd sets up the sandbox: it has yet to become the command."""
    change_deep(f"{when}=/usr/bin/sleep 70.7")
    wait_for("fast")
    try:
        ssh_ok(
            "systemctl start --no-block llama-tier-deep && "
            "timeout 60 sh -c 'until pgrep -f \"[s]leep 70.7\" >/dev/null; do sleep 0.05; done'"
        )
        ssh_ok(how + (" $(pgrep -f '[s]leep 70.7')" if how == "kill -9" else ""))
        wait_for("fast")
        assert states()["deep"] == state
    finally:
        deep_again()


def stream_of_fast(tokens: int, where: str) -> str:
    """Return the command that streams so many tokens of fast from where curl is told, and counts them."""
    body = json.dumps({"prompt": "Count:", "n_predict": tokens, "stream": True, "ignore_eos": True})
    return (
        'curl -sN -H "Authorization: Bearer $(head -1 /etc/llama-tiers/keys/fast)" '
        f"{where}/completion -d '{body}' | grep -c '^data:'"
    )


def test_a_stream_in_flight_is_finished_before_the_tier_gives_way() -> None:
    wait_for("fast")
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(ssh, stream_of_fast(120, "http://127.0.0.1:8080"))
        time.sleep(1.5)
        answer = ask("deep")
        chunks = int(stream.result().stdout)
    assert chunks >= 120
    assert answer["code"] == "200"


def test_twenty_switches_and_twenty_first_requests_leave_nothing_behind() -> None:
    for number in range(20):
        assert ask("deep" if number % 2 else "fast")["code"] == "200"
    wait_for("fast", seconds=IDLE_S + 60)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask("deep"), range(20)))
    assert [answer["code"] for answer in answers] == ["200"] * 20
    assert rivals_up() == ["deep"]
    wait_for("fast", seconds=IDLE_S + 60)
    assert rivals_up() == ["fast"]
    assert on_the_cards() == main_pids(*(tier for tier, state in states().items() if state == "active"))
    assert ssh_ok(FAILED_UNITS).strip() == ""
    assert ssh_ok("systemctl list-jobs --no-legend").strip() in ("", "No jobs running.")


def change(tier: str, line: str) -> None:
    """Have one thing of a tier's unit otherwise."""
    folder = drop_ins(tier)
    ssh_ok(f"mkdir -p {folder} && printf '[Service]\\n%s\\n' '{line}' > {folder}/fault.conf && systemctl daemon-reload")


def change_deep(line: str) -> None:
    change("deep", line)


def drop_ins(tier: str) -> str:
    return DROP_INS.replace("deep", tier)


def loads_since(second: str, tier: str = "deep") -> int:
    """Return how often a tier was started since a second of the host's clock."""
    told = ssh_ok(f"journalctl -u llama-tier-{tier} --since @{second} -o cat")
    return told.count(f"Starting llama-tier-{tier}.service")


def wait_for_fallback(tier: str) -> None:
    """Wait until the fallback has the port of a tier that has failed: for a moment nobody has it."""
    ssh_ok(f"timeout 60 sh -c 'until systemctl is-active -q llama-tier-{tier}-fallback.socket; do sleep 0.1; done'")


def deep_again() -> None:
    ssh_ok(f"rm -rf {drop_ins('*')}; systemctl daemon-reload; systemctl start llama-tier-deep.socket llama-tier-fast")


def test_a_load_that_fails_is_tried_once_and_the_fallback_answers_on_its_port() -> None:
    change_deep('ExecStartPost=/bin/sh -c "echo not ready: a test refuses it; exit 1"')
    wait_for("fast")
    since = ssh_ok("date +%s").strip()
    try:
        with ThreadPoolExecutor(5) as pool:
            assert {answer["code"] for answer in pool.map(lambda _: ask("deep"), range(5))} == {"000"}
        assert loads_since(since) == 1
        wait_for("fast")
        answer = ask("deep")
        assert answer["code"] == "200"
        assert rivals_up() == ["fast"]
        assert states() == {"fast": "active", "deep": "failed", "small": "active"}
        assert on_the_cards() == main_pids("fast", "small")
        assert re.search(r": not ready: a test refuses it", why_small_answers())
        result = site()
        assert result.returncode == 2
        assert "deep: FAIL" in result.stdout
        assert loads_since(since) == 1
    finally:
        deep_again()
    assert ask("deep")["code"] == "200"
    assert "deep" in rivals_up()
    assert ssh_ok(FAILED_UNITS).strip() == ""


def test_a_fallback_that_fails_too_is_tried_once_and_answers_again_after_its_cooldown() -> None:
    wait_for("fast")
    for tier in ("deep", "small"):
        change(tier, "ExecStartPost=/bin/false")
    ssh_ok("systemctl stop llama-tier-small")
    since = ssh_ok("date +%s").strip()
    try:
        assert ask("deep")["code"] == "000"
        wait_for_fallback("deep")
        assert ask("deep", seconds=30)["code"] == "000"
        assert ask("deep")["wall_s"] < 1, "its port is closed"
        assert (loads_since(since), loads_since(since, "small")) == (1, 1)
        ssh_ok(f"rm -rf {drop_ins('small')}; systemctl daemon-reload")
        wait_for_fallback("deep")
        assert ask("deep")["code"] == "200"
        assert (loads_since(since), loads_since(since, "small")) == (1, 2)
        # Another failure of the fallback is none of a tier that is well.
        ssh_ok(f"rm -rf {drop_ins('deep')}; systemctl daemon-reload; systemctl start llama-tier-deep.socket")
        ssh_ok("kill -9 $(systemctl show -P MainPID llama-tier-small)")
        wait_for("small", "failed")
        ssh_ok("timeout 60 sh -c 'until systemctl is-active -q llama-tier-small.socket; do sleep 0.2; done'")
        assert ask("deep")["code"] == "200"
        assert rivals_up() == ["deep"]
    finally:
        deep_again()
        ssh_ok("systemctl start llama-tier-small")


def test_the_port_is_its_own_again_when_the_time_of_the_fallback_is_over() -> None:
    change_deep("ExecStartPost=/bin/false")
    wait_for("fast")
    try:
        assert ask("deep")["code"] == "000"
        ssh_ok(f"rm -rf {drop_ins('deep')}; systemctl daemon-reload")
        # Nobody waits for an hour.
        clock = ssh_ok("systemctl show -P MainPID llama-tier-deep-cooldown").strip()
        assert ssh_ok(f"ps -o args= -p {clock}").strip() == "/usr/bin/sleep 3600"
        ssh_ok(f"kill {clock}")
        ssh_ok("timeout 40 sh -c 'until systemctl is-active -q llama-tier-deep.socket; do sleep 0.5; done'")
        assert ssh_ok(FAILED_UNITS).strip() == ""
        code, document = verify()
        assert code == 1
        assert "Failed with result 'exit-code'" in reasons(document, "deep")[0]
        assert ask("deep")["code"] == "200"
        assert "deep" in rivals_up()
    finally:
        deep_again()


def test_the_port_is_its_own_again_though_a_client_waits_for_the_fallback_to_load() -> None:
    change_deep("ExecStartPost=/bin/false")
    wait_for("fast")
    try:
        assert ask("deep")["code"] == "000"
        wait_for_fallback("deep")
        change("small", "ExecStartPre=/usr/bin/sleep 20.3")
        ssh_ok(f"systemctl stop llama-tier-small; rm -rf {drop_ins('deep')}; systemctl daemon-reload")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ask, "deep")
            ssh_ok("timeout 60 sh -c 'until pgrep -f \"[s]leep 20.3\" >/dev/null; do sleep 0.1; done'")
            assert "llama-tier-deep-fallback.service" in ssh_ok("systemctl list-jobs --plain")
            ssh_ok("kill $(systemctl show -P MainPID llama-tier-deep-cooldown)")
            ssh_ok("timeout 10 sh -c 'until systemctl is-active -q llama-tier-deep.socket; do sleep 0.2; done'")
            assert waiting.result()["code"] == "000"
        assert ask("deep")["code"] == "200"
        assert "deep" in rivals_up()
    finally:
        ssh_ok(f"rm -rf {drop_ins('small')}")
        deep_again()
        ssh_ok("systemctl start llama-tier-small")


KILLED = "Main process exited, code=killed, status=9/KILL"


def test_a_server_that_dies_gives_its_place_back() -> None:
    assert ask("deep")["code"] == "200"
    ssh_ok("kill -9 $(systemctl show -P MainPID llama-tier-deep)")
    try:
        wait_for("fast")
        wait_for_fallback("deep")
        assert ask("deep")["code"] == "200"
        assert rivals_up() == ["fast"]
        assert states()["deep"] == "failed"
        assert KILLED in journal("deep")
        assert KILLED in why_small_answers()
    finally:
        deep_again()


def test_a_server_that_hangs_is_seen_by_verification_and_gives_way_to_its_rival() -> None:
    wait_for("fast")
    ssh_ok("kill -STOP $(systemctl show -P MainPID llama-tier-fast)")
    code, document = verify()
    assert code == 1
    assert "gave no answer within" in reasons(document, "fast")[0]
    assert states()["fast"] == "active"
    assert ask("deep")["code"] == "200"
    assert rivals_up() == ["deep"]
    wait_for("fast", seconds=IDLE_S + 30)
    assert ask("fast")["code"] == "200"


def test_a_pinned_tier_that_is_killed_is_back_after_its_cooldown() -> None:
    wait_for("fast")
    ssh_ok("kill -9 $(systemctl show -P MainPID llama-tier-fast)")
    wait_for("fast", "failed")
    assert ask("fast")["code"] == "000"
    wait_for("fast", seconds=COOLDOWN_S + 30)
    assert ask("fast")["code"] == "200"


def test_a_pinned_tier_that_ends_by_itself_is_loaded_again_and_still_gives_way() -> None:
    wait_for("fast")
    (before,) = main_pids("fast")
    ssh_ok(f"kill {before}; {GONE.format(before)}")
    wait_for("fast")
    (again,) = main_pids("fast")
    assert again != before
    # Nor does a client notice that comes while it is loaded.
    ssh_ok(f"kill {again}; {GONE.format(again)}")
    assert ask("fast")["code"] == "200"
    assert ask("deep")["code"] == "200"
    assert rivals_up() == ["deep"]
    wait_for("fast", seconds=IDLE_S + 30)
    assert ssh_ok(FAILED_UNITS) == ""


def test_what_is_stopped_all_together_stays_stopped_when_a_cooldown_is_over() -> None:
    wait_for("fast")
    ssh_ok("kill -9 $(systemctl show -P MainPID llama-tier-fast)")
    wait_for("fast", "failed")
    ssh_ok("systemctl stop llama-tiers.target")
    try:
        time.sleep(COOLDOWN_S + 2)
        assert ssh_ok(UNITS_UP) == ""
    finally:
        ssh_ok("systemctl start llama-tiers.target")
    assert ask("fast")["code"] == "200"


def test_one_that_has_to_be_killed_when_all_are_stopped_opens_no_port() -> None:
    change_deep("KillSignal=SIGURG")
    wait_for("fast")
    try:
        assert ask("deep")["code"] == "200"
        ssh_ok("systemctl stop llama-tiers.target")
        wait_for("deep", "failed")
        assert "stop-sigterm' timed out" in journal("deep")
        assert ssh_ok(UNITS_UP) == ""
    finally:
        deep_again()
        ssh_ok("systemctl start llama-tiers.target")
    assert ask("fast")["code"] == "200"


def test_one_that_is_killed_while_all_are_stopped_and_another_one_is_drained_opens_no_port() -> None:
    """The target itself is down before the last tier is: the cooldown must not start in between."""
    change("small", "KillSignal=SIGURG")
    wait_for("fast")
    # Over TLS, which must not be cut off either.
    over_tls = stream_of_fast(150, f"--cacert {TLS['certificate']} https://127.0.0.1:{TLS_OF_FAST}")
    try:
        assert ask("small")["code"] == "200"
        with ThreadPoolExecutor() as pool:
            stream = pool.submit(ssh, over_tls)
            time.sleep(1)
            ssh_ok("systemctl stop --no-block llama-tiers.target; sleep 0.3")
            ssh_ok("kill -9 $(systemctl show -P MainPID llama-tier-small)")
            assert int(stream.result().stdout) >= 150, "the case of this test: it was drained meanwhile"
        ssh_ok("timeout 60 sh -c 'until [ $(systemctl is-active llama-tier-fast) = inactive ]; do sleep 0.1; done'")
        assert states()["small"] == "failed"
        assert ssh_ok("systemctl list-jobs --no-legend").strip() in ("", "No jobs running.")
        assert ssh_ok(UNITS_UP) == ""
    finally:
        deep_again()
        ssh_ok("systemctl start llama-tiers.target")
    assert ask("fast")["code"] == "200"


def test_the_tiers_together_are_to_have_all_of_the_hosts_memory_but_the_systems() -> None:
    (total_kib,) = re.findall(r"^MemTotal:\s+(\d+) kB", ssh_ok("cat /proc/meminfo"), re.MULTILINE)
    room_mib = int(total_kib) // 1024 - 1536
    assert ssh_ok("systemctl show -P MemoryHigh llama-tiers.slice").strip() == str(room_mib * 1024 * 1024)
    wait_for("fast")
    group = ssh_ok("systemctl show -P ControlGroup llama-tier-fast").strip()
    assert group.endswith("/llama-tiers.slice/llama-tier-fast.service")
    high = Path("/sys/fs/cgroup" + group).parent / "memory.high"
    if ssh(f"test -e {high}").returncode:
        pytest.skip("cgroup v1 has no memory.high: whether it holds the tiers back was not looked at")
    assert ssh_ok(f"cat {high}").strip() == str(room_mib * 1024 * 1024)


def test_a_server_that_reads_its_model_past_the_page_cache_leaves_nothing_of_it_there() -> None:
    spec = json.loads(ssh_ok("cat /etc/llama-tiers/tiers/deep.json"))
    words = [{"mmap": "dio"}.get(word, word) for word in spec["argv"]]
    assert words != spec["argv"]
    file = shlex.quote(spec["model"]["file"])
    look = f"python3 -c {shlex.quote((ROOT / 'roles/models/molecule/default/files/page_cache.py').read_text())}"

    def cached_share() -> float:
        """Load deep with nothing of its model's file cached; return how much of it is then."""
        ssh_ok(f"systemctl stop llama-tiers.target; {look} {file} drop")
        ssh_ok("systemctl start llama-tiers.target llama-tier-deep")
        pages, size = ssh_ok(f"{look} {file}; stat -c %s {file}").split()
        return int(pages) * 4096 / int(size)

    try:
        through = cached_share()
        change_deep(f"ExecStart=\nExecStart={' '.join(words)}")
        past = cached_share()
        assert ask("deep")["code"] == "200"
    finally:
        deep_again()
    assert past < 0.1
    assert through > 0.9


def test_a_limit_of_memory_hits_the_tier_that_needs_more_alone() -> None:
    change_deep("MemoryMax=60M")
    try:
        ssh("systemctl start llama-tier-small")
        small = ssh_ok("systemctl show -P MainPID llama-tier-small")
        assert ask("deep")["code"] == "000"
        wait_for("fast")
        assert ssh_ok("systemctl show -P MainPID llama-tier-small") == small
        assert ssh_ok("systemctl show -P Result llama-tier-deep").strip() in ("oom-kill", "signal")
        assert states()["deep"] == "failed"
        assert KILLED in journal("deep")
        wait_for_fallback("deep")
        assert ask("deep")["code"] == "200"
        assert rivals_up() == ["fast"]
        assert "killed" in why_small_answers()
    finally:
        deep_again()


# As the unit's own command, for less than a minute.
IMPATIENT = (
    "ExecStartPre=\nExecStartPre=/opt/llama-tiers/checker/bin/python -c "
    '"import sys; from checker import arrival; arrival.wait.__defaults__ = (10.0, 15.0); '
    'sys.exit(arrival.main(sys.argv[1]))" deep'
)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_card_that_is_absent_at_the_start_is_waited_for(*, comes_back: bool) -> None:
    ssh_ok(f"mkdir -p /etc/lab-gpus/faults && touch /etc/lab-gpus/faults/missing.{SMALL}")
    try:
        if not comes_back:
            change_deep(IMPATIENT)
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(ask, "deep")
            time.sleep(8)
            if comes_back:
                ssh_ok(f"rm /etc/lab-gpus/faults/missing.{SMALL}")
            assert answer.result()["code"] == ("200" if comes_back else "000")
        if not comes_back:
            gone = f"deep: {SMALL} is gone, found {BIG}: plan again"
            assert f"not ready: {gone}" in journal("deep")
            wait_for("fast")
            assert ask("fast")["code"] == "200"
            assert states()["deep"] == "failed"
            assert any(gone in reason for reason in reasons(verify()[1], "deep"))
        else:
            assert rivals_up() == ["deep"]
    finally:
        ssh_ok(f"rm -f /etc/lab-gpus/faults/missing.{SMALL}")
        deep_again()


def test_a_card_that_is_full_fails_the_load_once_and_the_fallback_answers() -> None:
    wait_for("fast")
    ssh_ok("systemctl start llama-tier-small")
    since = ssh_ok("date +%s").strip()
    try:
        with faults(f"full.{SMALL}"):
            assert ask("deep")["code"] == "000"
            wait_for("fast")
            assert states()["deep"] == "failed"
            assert f"deep: {SMALL} has 0 MiB free, " in journal("deep")
            assert ask("deep")["code"] == "200"
            assert rivals_up() == ["fast"]
            assert re.search(r": failed to allocate RPC\d\[127.0.0.1:50053\] buffer", why_small_answers())
        assert loads_since(since) == 1
    finally:
        deep_again()


def test_a_card_that_is_full_at_the_first_long_prompt_ends_the_tier_and_the_fallback_answers() -> None:
    wait_for("fast")
    ssh_ok("systemctl start llama-tier-small")
    since = ssh_ok("date +%s").strip()
    long = json.dumps({"prompt": "one two three " * 300, "n_predict": 1})
    try:
        assert ask("deep")["code"] == "200"
        with faults(f"full.{SMALL}"):
            assert ask("deep")["code"] == "200"
            ssh(
                'curl -s -m 120 -H "Authorization: Bearer $(head -1 /etc/llama-tiers/keys/deep)" '
                f"http://127.0.0.1:8081/completion -d '{long}'"
            )
            assert "out of memory" in ssh_ok(f"journalctl -u lab-gpu@1 --since @{since} -o cat")
            wait_for("fast")
            assert states()["deep"] == "failed"
            assert ask("deep")["code"] == "200"
            assert rivals_up() == ["fast"]
            assert re.search(r"Remote RPC server crashed.*status=6/ABRT", why_small_answers())
    finally:
        deep_again()


def test_a_card_that_is_lost_fails_what_is_on_it_by_name() -> None:
    assert ask("deep")["code"] == "200"
    wait_for("fast", seconds=IDLE_S + 30)
    lost = f"{BIG}: the GPU is lost"
    try:
        with faults(f"lost.{BIG}"):
            ssh_ok("systemctl stop lab-gpu@0")
            try:
                code, document = verify()
                assert code == 1
                # One serves and dies of the request, the other one sleeps and is not loaded for it.
                for tier in ("fast", "deep"):
                    assert any(lost in reason for reason in reasons(document, tier)), reasons(document, tier)
                assert reasons(document, "small") == []
                assert states()["deep"] == "inactive"
                change_deep(IMPATIENT)
                assert ask("deep")["code"] == "000"
                assert f"not ready: deep: {lost}" in journal("deep")
                wait_for_fallback("deep")
                assert ask("deep")["code"] == "200"
                assert (states()["deep"], states()["small"]) == ("failed", "active")
                # The pinned one is tried again, and waits for its card.
                wait_for("fast", "activating")
                assert lost in reasons(verify()[1], "fast")[0]
            finally:
                ssh_ok("systemctl start lab-gpu@0")
    finally:
        deep_again()


# The host itself gives the card back: nobody gets there while it boots.
LATE = {
    "late-card.service": f"[Service]\nExecStart=/bin/rm -f /etc/lab-gpus/faults/missing.{BIG}\n",
    "late-card.timer": "[Timer]\nOnActiveSec=20\nAccuracySec=1\n[Install]\nWantedBy=timers.target\n",
}


def test_after_a_reboot_the_pinned_tier_serves_though_its_card_comes_late_and_the_others_wait_for_a_request() -> None:
    with faults(f"missing.{BIG}"):
        for name, text in LATE.items():
            ssh_ok(f"printf %s {shlex.quote(text)} > /etc/systemd/system/{name}")
        ssh_ok("systemctl enable late-card.timer")
        rebooted = run(ROOT / "tests/lab/lab.sh", "reboot", "gpuhost")
        assert rebooted.returncode == 0, rebooted.stderr
        wait_for("fast", seconds=90)
    ssh_ok(f"systemctl disable --now late-card.timer; cd /etc/systemd/system && rm {' '.join(LATE)}")
    show = "systemctl show --value -P InactiveExitTimestampMonotonic -P ActiveEnterTimestampMonotonic llama-tier-fast"
    began, ready = sorted(map(int, ssh_ok(show).split()))
    assert ready - began > 15e6, "it has waited for its card"
    assert states() == {"fast": "active", "deep": "inactive", "small": "inactive"}
    boxes = {box["name"]: box for box in verify()[1]["hosts"][0]["checklist"]}
    for name in ("Tiers are back after a reboot", "Tiers take turns"):
        assert boxes[name]["ticked"], boxes[name]
    assert ask("deep")["code"] == "200"


# A container cannot sleep: it is over at once, and the driver has what it kept of the cards back a while later.
SLEEP = {
    "systemd-suspend": """[Unit]
DefaultDependencies=no
Wants=nvidia-resume.service
[Service]
Type=oneshot
ExecStart=/usr/bin/true
""",
    "nvidia-resume": """[Unit]
After=systemd-suspend.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c "sleep 3; python3 -c 'import time; print(time.monotonic_ns() // 1000)' > /run/driver-is-ready"
""",
}


def test_after_a_sleep_what_was_loaded_is_loaded_again_once_the_driver_is_ready() -> None:
    wait_for("fast")
    wait_for("deep", "inactive")
    [before] = main_pids("fast")
    units = {name: f"/run/systemd/system/{name}.service" for name in SLEEP}
    try:
        for name, path in units.items():
            ssh_ok(f"printf %s {shlex.quote(SLEEP[name])} > {path}")
        ssh_ok("systemctl daemon-reload")
        # Or the machine itself would sleep.
        assert "/usr/bin/true" in ssh_ok("systemctl show -P ExecStart systemd-suspend")
        ssh_ok("systemctl start suspend.target")
        same = f"[ $(systemctl show -P MainPID llama-tier-fast) = {before} ]"
        ssh_ok(f"timeout 60 sh -c 'while {same}; do sleep 0.2; done'")
        wait_for("fast")
        ready = int(ssh_ok("cat /run/driver-is-ready"))
        again = int(ssh_ok("systemctl show -P ExecMainStartTimestampMonotonic llama-tier-fast"))
        assert ready < again
        assert states()["deep"] == "inactive"
        assert ask("fast")["code"] == "200"
    finally:
        ssh_ok(f"rm -f /run/driver-is-ready {' '.join(units.values())}; systemctl daemon-reload")


def test_a_tier_that_leaves_takes_its_units_and_its_key_along() -> None:
    changed = variables()
    changed["tiers"] = changed["tiers"][:2]
    del changed["tiers"][1]["fallback"]
    wait_for("fast")
    fast = ssh_ok("systemctl show -P MainPID llama-tier-fast")
    result = playbook("site.yml", "-e", json.dumps(changed))
    assert result.returncode == 0, result.stdout[-3000:]
    assert "small" in result.stdout
    left = ssh("ls /etc/systemd/system /etc/llama-tiers/tiers /etc/llama-tiers/keys | grep -e small -e fallback").stdout
    assert left == ""
    assert ssh_ok("systemctl show -P MainPID llama-tier-fast") == fast


def test_a_pinned_tier_comes_back_once_nobody_asks_its_rival_in_the_place_of_another_tier() -> None:
    changed = variables()
    fast, deep, small = changed["tiers"]
    del deep["fallback"]
    fast["fallback"] = small["fallback"] = "deep"
    result = playbook("site.yml", "-e", json.dumps(changed))
    assert result.returncode == 0, result.stdout[-3000:]
    change("small", "ExecStartPost=/bin/false")
    ssh_ok("systemctl stop llama-tier-small")
    wait_for("fast")
    try:
        assert ask("small")["code"] == "000"
        wait_for_fallback("small")
        assert ask("small")["code"] == "200"
        assert rivals_up() == ["deep"]
        wait_for("fast", seconds=IDLE_S + 30)
        assert rivals_up() == ["fast"]
    finally:
        ssh_ok("systemctl start llama-tier-small.socket")
        deep_again()


def test_a_pinned_tier_that_has_failed_is_left_to_its_fallback_also_when_nobody_asks_that() -> None:
    wait_for("fast")
    ssh_ok("kill -9 $(systemctl show -P MainPID llama-tier-fast)")
    try:
        wait_for_fallback("fast")
        assert ask("fast")["code"] == "200"
        assert rivals_up() == ["deep"]
        answering = main_pids("deep")
        front = "[ $(systemctl is-active llama-tier-fast-fallback.service) = inactive ]"
        ssh_ok(f"timeout {IDLE_S + 30} sh -c 'until {front}; do sleep 0.2; done'")
        time.sleep(1)
        assert (states()["fast"], main_pids("deep")) == ("failed", answering)
    finally:
        ssh_ok("systemctl start llama-tier-fast.socket llama-tier-fast")
    assert ask("fast")["code"] == "200"
    assert rivals_up() == ["fast"]
