"""`checker`: exit codes, what goes to stdout and what to stderr, and what ansible-runner's events mean."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from decision_cases import measured
from example_report import report

from checker import cli, readiness, runner, trial
from checker.runner import Failure, RunResult

ROOT = Path(__file__).parents[2]
INVENTORY = str(ROOT / "inventories/lab")
GATE = Failure("tower", cli.GATE, "deep: FAIL")
UNREACHABLE = Failure("attic", "unreachable", "ssh: connect to host attic port 22: No route to host")


def result(*reports: Any, failures: tuple[Failure, ...] = (), said: str = "") -> RunResult:
    data = {"llama_tiers": {item.host: item.to_json() for item in reports}} if reports else {}
    return RunResult(data, failures, said)


@pytest.fixture
def playbook(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Answer runs with the results that a test appends, and keep the arguments of the last."""
    calls: list[tuple[Any, ...]] = []

    def run(*arguments: Any) -> RunResult:
        answer = calls.pop()
        calls.append(arguments)
        return answer  # type: ignore[return-value]

    monkeypatch.setattr(runner, "run", run)
    return calls


@pytest.mark.parametrize(
    ("given", "code", "hosts", "said"),
    [
        (result(report()), 0, ["tower"], ""),
        (result(report(failed=True), failures=(GATE,)), 1, ["tower"], ""),
        (result(report(), failures=(UNREACHABLE,)), 2, ["tower"], "attic: unreachable: ssh: connect"),
        (result(report(failed=True), failures=(GATE, UNREACHABLE)), 2, ["tower"], "attic: unreachable"),
        (result(report(), failures=(Failure("tower", "Write the status", "disk full"),)), 2, ["tower"], "disk full"),
        (result(report(), report("shed", failed=True), failures=(GATE,)), 1, ["tower", "shed"], ""),
    ],
    ids=["pass", "fail", "unreachable", "fail and unreachable", "undocumented", "one of two fails"],
)
def test_exit_code_and_document(
    playbook: list[Any], capsys: pytest.CaptureFixture[str], given: RunResult, code: int, hosts: list[str], said: str
) -> None:
    playbook.append(given)
    assert cli.main(["verify", "-i", INVENTORY, "--format", "json"]) == code
    printed = capsys.readouterr()
    assert [host["host"] for host in json.loads(printed.out)["hosts"]] == hosts
    assert said in printed.err
    assert bool(said) == bool(printed.err)


def test_limit_and_inventory_reach_the_playbook(playbook: list[Any]) -> None:
    playbook.append(result(report()))
    cli.main(["verify", "-i", INVENTORY, "--limit", "tower"])
    whole = {"verification_depth": "whole", "verification_quality": False, "verification_accept_slower": False}
    assert playbook == [(ROOT, "playbooks/verify.yml", Path(INVENTORY), "tower", whole)]


def test_what_is_measured_and_accepted_reaches_the_role(playbook: list[Any]) -> None:
    playbook.append(result(report()))
    cli.main(["verify", "-i", INVENTORY, "--quick", "--quality", "--accept-slower"])
    given = playbook[-1][-1]
    assert given == {
        "verification_depth": "quick",
        "verification_quality": True,
        "verification_accept_slower": True,
    }
    options = yaml.safe_load((ROOT / "roles/verification/meta/argument_specs.yml").read_text(encoding="utf-8"))
    assert set(given) <= set(options["argument_specs"]["main"]["options"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (result(failures=(UNREACHABLE,)), "attic: unreachable: ssh: connect to host attic port 22"),
        (result(said="ERROR! --limit leaves no hosts to target"), "was measured\nERROR! --limit leaves no hosts"),
    ],
    ids=["unreachable", "nobody"],
)
def test_nothing_measured_prints_nothing_on_stdout(
    playbook: list[Any], capsys: pytest.CaptureFixture[str], given: RunResult, said: str
) -> None:
    playbook.append(given)
    assert cli.main(["verify", "-i", INVENTORY, "--format", "json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err


def test_an_inventory_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "-i", "inventories/moon"]) == 2
    assert "no inventory at inventories/moon" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hosts", "code"), [([report()], 0), ([report(), report("shed", failed=True)], 1)], ids=["pass", "fail"]
)
def test_report_prints_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hosts: list[Any], code: int
) -> None:
    for item in hosts:
        (tmp_path / f"{item.host}.json").write_text(json.dumps(item.to_json()))
    assert cli.main(["report", "--evidence", str(tmp_path), "--format", "json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert {host["host"] for host in document["hosts"]} == {item.host for item in hosts}


@pytest.mark.parametrize(
    ("content", "said"), [(None, "run `checker verify` first"), ("{", "tower.json cannot be read")]
)
def test_report_without_evidence_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "tower.json").write_text(content)
    assert cli.main(["report", "--evidence", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_outside_a_checkout_verify_says_where_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    assert cli.main(["verify", "-i", INVENTORY]) == 2
    assert "run it from a checkout" in capsys.readouterr().err


def test_ready_is_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "main", lambda name: 0 if name == "deep" else 1)
    assert (cli.main(["ready", "deep"]), cli.main(["ready", "fast"])) == (0, 1)


def test_the_gate_is_a_task_of_the_role() -> None:
    tasks = yaml.safe_load((ROOT / "roles/verification/tasks/gate.yml").read_text(encoding="utf-8"))
    assert [task["name"] for task in tasks] == [cli.GATE]


def test_the_hosts_half_needs_nothing_of_the_controllers() -> None:
    program = (
        "import sys; blocked = ('ansible_runner', 'rich', 'pydantic', 'yaml', 'gguf'); "
        "sys.modules.update(dict.fromkeys(blocked)); from checker import cli, readiness, verification"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env=os.environ)


def event(name: str, **data: Any) -> dict[str, Any]:
    return {"event": name, "event_data": data}


def test_events_are_read() -> None:
    got = runner.read_events(
        [
            {"event": "verbose"},
            event("runner_on_ok", host="tower", task="Measure", res={"msg": "fine"}),
            event("runner_on_failed", host="tower", task="Try", res={"msg": "ignored"}, ignore_errors=True),
            event("runner_on_failed", host="tower", task="Gate", res={"msg": "deep: FAIL"}, ignore_errors=None),
            event("runner_on_failed", host="shed", task="Odd", res={"rc": 1}),
            event("runner_on_unreachable", host="attic", task="Stat", res={"msg": "no route"}),
            event("playbook_on_stats", artifact_data={"llama_tiers": {"tower": {}}}),
        ],
        said="end",
    )
    assert got.artifact_data == {"llama_tiers": {"tower": {}}}
    assert got.failures == (
        Failure("tower", "Gate", "deep: FAIL"),
        Failure("shed", "Odd", "{'rc': 1}"),
        Failure("attic", "unreachable", "no route"),
    )
    assert got.said == "end"


def test_a_real_run_tells_its_facts_and_its_failures(tmp_path: Path) -> None:
    """Through the real ansible-runner: set_stats arrives although the play fails afterwards."""
    (tmp_path / "ansible.cfg").write_text("[defaults]\n")
    (tmp_path / "hosts").write_text("tower ansible_connection=local\n")
    (tmp_path / "play.yml").write_text(
        "- hosts: all\n"
        "  gather_facts: false\n"
        "  tasks:\n"
        "    - ansible.builtin.set_stats:\n"
        "        data: {llama_tiers: '{{ {inventory_hostname: {\"passed\": false}} }}'}\n"
        "        per_host: false\n"
        "        aggregate: true\n"
        "    - name: Gate\n"
        "      ansible.builtin.assert: {that: false, fail_msg: '{{ said }}'}\n"
    )
    got = runner.run(tmp_path, "play.yml", tmp_path / "hosts", None, {"said": "refused"})
    assert got.artifact_data["llama_tiers"] == {"tower": {"passed": False}}
    assert got.failures == (Failure("tower", "Gate", "refused"),)
    nobody = runner.run(tmp_path, "play.yml", tmp_path / "hosts", "moon", {})
    assert (nobody.artifact_data, nobody.failures) == ({}, ())
    assert "moon" in nobody.said or "no hosts" in nobody.said


def test_a_playbook_that_is_interrupted_is_no_result(tmp_path: Path) -> None:
    """Through the real ansible-runner, which takes Ctrl-C for itself."""
    (tmp_path / "ansible.cfg").write_text("[defaults]\n")
    (tmp_path / "hosts").write_text(f"tower ansible_connection=local ansible_python_interpreter={sys.executable}\n")
    (tmp_path / "play.yml").write_text(
        "- hosts: all\n"
        "  gather_facts: false\n"
        "  tasks:\n"
        f"    - ansible.builtin.command: sh -c 'touch {tmp_path}/running; exec sleep 20'\n"
    )

    def interrupt() -> None:
        while not (tmp_path / "running").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            runner.run(tmp_path, "play.yml", tmp_path / "hosts", None, {})
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_trial_that_is_interrupted_says_what_becomes_of_the_hosts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: Any) -> RunResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", run)
    assert cli.main(["trial", "-i", INVENTORY]) == 130
    said = capsys.readouterr().err
    assert said.startswith("checker: interrupted: ") and "starts what served before" in said


def test_a_fault_of_our_own_is_not_a_failed_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: Any) -> RunResult:
        raise RuntimeError("no space left")

    monkeypatch.setattr(runner, "run", run)
    assert cli.main(["verify", "-i", INVENTORY]) == 2
    assert "no space left" in capsys.readouterr().err


def test_what_was_rescued_is_no_failure() -> None:
    events = [
        event("runner_on_failed", host="tower", task="Fetch a file", res={"msg": "404"}),
        event("runner_on_failed", host="shed", task="Fetch a file", res={"msg": "404"}),
        event("playbook_on_stats", artifact_data={}, failures={"shed": 1}, dark={}, rescued={"tower": 1}),
    ]
    assert [failure.host for failure in runner.read_events(events).failures] == ["shed"]


def trials(*records: Any, failures: tuple[Failure, ...] = ()) -> RunResult:
    return RunResult({"llama_tiers_trials": {"gpuhost": [record.to_json() for record in records]}}, failures, "")


def test_trials_are_shown_with_what_was_measured(playbook: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    failed = replace(measured("auto"), outcome=trial.FAILED, reason="it did not start: out of memory", evidence=None)
    playbook.append(trials(measured({"tensor_split": [3, 2]}, 33.3), failed))
    assert cli.main(["trial", "-i", INVENTORY, "--tier", "deep", "--again"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"✓ +deep +tiny +3,2 +33\.3 +3\.1", printed)
    assert re.search(r"✗ +deep +tiny +3,2 +- +-", printed)
    assert "deep: tiny (auto): it did not start: out of memory" in printed
    root, name, inventory, limit, variables, _ = playbook[0]
    assert (root, name, inventory, limit) == (ROOT, "playbooks/trial.yml", Path(INVENTORY), None)
    assert variables == {"trial_tier": "deep", "trial_again": True}
    options = yaml.safe_load((ROOT / "roles/trial/meta/argument_specs.yml").read_text(encoding="utf-8"))
    assert set(variables) <= set(options["argument_specs"]["main"]["options"])


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (trials(measured("auto")), 0, ""),
        (trials(measured("auto"), failures=(UNREACHABLE,)), 2, "attic: unreachable"),
        (RunResult({}, (), "ERROR! nothing"), 2, "was tried\nERROR! nothing"),
    ],
    ids=["tried", "unreachable", "nobody"],
)
def test_a_trials_exit_code(
    playbook: list[Any], capsys: pytest.CaptureFixture[str], given: RunResult, code: int, said: str
) -> None:
    playbook.append(given)
    assert cli.main(["trial", "-i", INVENTORY, "--format", "json"]) == code
    printed = capsys.readouterr()
    assert said in printed.err
    for line in printed.out.splitlines():
        assert trial.from_json(json.loads(line)).model == "tiny"
