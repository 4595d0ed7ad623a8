"""run_with_progress: what it shows while a job runs, and what it returns when the job has ended."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("run_with_progress", ROOT / "plugins/action/run_with_progress.py")
assert SPEC is not None and SPEC.loader is not None
PLUGIN = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(PLUGIN)

PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - run_with_progress:
        module: ansible.builtin.command
        args: {{argv: [/bin/sh, -c, "{script}"]}}
        progress: {progress}
        title: a job
        timeout: {timeout}
        lease: {lease}
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[1/2] one\n[2/2] two\n", "[2/2] two"),
        ("10 %\r20 %\r", "20 %"),
        ("a line\n\n   \n", "a line"),
        ("\x1b[1mbold", "[1mbold"),
        ("", ""),
    ],
)
def test_the_last_visible_line_is_shown(text: str, shown: str) -> None:
    assert PLUGIN.last_line(text) == shown


@pytest.mark.parametrize(
    ("head", "running"),
    [
        ('{"started": true, "finished": false, "ansible_job_id": "j1.2"}', True),
        ('{"started": 1, "finished": 0, "ansible_job_id": "j1.2"}', True),
        ('{"changed": true, "rc": 0}', False),
        ('{"changed": true, "stdout": "a result that is longer than the head', False),
        ("", False),
    ],
)
def test_a_job_runs_until_its_result_is_there(head: str, running: bool) -> None:
    assert PLUGIN.is_running(head) is running


def run(tmp_path: Path, script: str, timeout: int = 60) -> tuple[dict[str, Any], str]:
    """Run the action on this machine; return the task's result and what was shown."""
    play = tmp_path / "play.yml"
    files = {name: tmp_path / name for name in ("progress", "lease")}
    play.write_text(PLAY.format(script=script, timeout=timeout, **files), encoding="utf-8")
    shown = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local", "-v", str(play)],
        env=os.environ
        | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_ASYNC_DIR": str(tmp_path / "jobs"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    ).stdout
    lines = [line for line in shown.splitlines() if line.startswith(("changed: ", "fatal: "))]
    assert len(lines) == 1, shown
    return json.loads(lines[0].partition("=> ")[2]), shown


def test_a_job_shows_how_far_it_is_and_returns_its_own_result(tmp_path: Path) -> None:
    result, shown = run(tmp_path, f"echo [1/2] half >{tmp_path}/progress; sleep 4; echo done")
    assert "[localhost] a job: [1/2] half (" in shown
    assert result["stdout"] == "done"
    assert "ansible_job_id" not in result
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_job_can_tell_that_somebody_follows_it(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    result, _ = run(tmp_path, f"sleep 3; rm -f {lease}; sleep 5; test -e {lease} && echo followed")
    assert result["stdout"] == "followed"


def test_what_an_earlier_job_has_said_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "progress").write_text("[2/2] of an earlier job\n", encoding="utf-8")
    _, shown = run(tmp_path, "sleep 4")
    assert "[localhost] a job: working (" in shown


def test_a_short_job_is_quiet_and_its_failure_is_the_tasks_failure(tmp_path: Path) -> None:
    result, shown = run(tmp_path, "echo no such thing >&2; exit 3")
    assert "a job:" not in shown
    assert (result["rc"], result["stderr"]) == (3, "no such thing")


def test_a_job_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    result, _ = run(tmp_path, "sleep 30", timeout=2)
    assert result["msg"] == "a job: not done after 2 s, ended"


def test_a_job_that_is_killed_says_so(tmp_path: Path) -> None:
    result, _ = run(tmp_path, "kill -9 $PPID")
    assert "a job: the job ended without a result: it was killed" in result["msg"]
    assert "Traceback" not in result["msg"]
