"""Playbooks through ansible-runner: the only module that imports it.

What a playbook has to say reaches us by set_stats (event `playbook_on_stats`, `artifact_data`), which comes even when a
later task fails; the runner's fact cache is empty with ansible-core 2.19 and later (ansible-runner issue 1441).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ansible_runner


@dataclass(frozen=True)
class Failure:
    """A task that failed on a host, or that did not reach it, with what Ansible said."""

    host: str
    task: str
    message: str


@dataclass(frozen=True)
class RunResult:
    """What came of a run: the data of set_stats, and what went wrong where.

    `said` is the end of Ansible's own output, for what fails before any host is asked.
    """

    artifact_data: dict[str, Any]
    failures: tuple[Failure, ...]
    said: str


def run(
    root: Path,
    playbook: str,
    inventory: Path,
    limit: str | None,
    variables: Mapping[str, Any],
    tell: Callable[[str], None] | None = None,
) -> RunResult:
    """Run a playbook of the checkout at `root` against an inventory (absolute path), with these variables.

    `tell` is called with each line that a long task says of how far it is. After Ctrl-C: KeyboardInterrupt.
    """

    def handle(event: dict[str, Any]) -> bool:
        # Lines that belong to no task's result; those of run_with_progress begin with the host's name.
        line = str(event.get("stdout", ""))
        if tell is not None and event["event"] == "verbose" and line.startswith("["):
            tell(line)
        return True

    # ansible-playbook is looked for on PATH, where it is not when our interpreter's environment is not activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    with tempfile.TemporaryDirectory(prefix="llama-tiers-") as private:
        result = ansible_runner.run(
            private_data_dir=private,
            project_dir=str(root),
            playbook=playbook,
            inventory=str(inventory),
            limit=limit,
            extravars=dict(variables),
            envvars={"PATH": path, "ANSIBLE_CONFIG": str(root / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            quiet=True,
            event_handler=handle,
        )
        if result.status == "canceled":
            # ansible-runner has signal handlers of its own, which end the playbook and say nothing.
            raise KeyboardInterrupt
        return read_events(result.events, said=result.stdout.read()[-2000:])


def read_events(events: Iterable[Mapping[str, Any]], said: str = "") -> RunResult:
    """Pick out of ansible-runner's events what a caller acts on."""
    artifact_data: dict[str, Any] = {}
    failures = []
    failed_hosts = None
    for event in events:
        data = event.get("event_data", {})
        if event["event"] == "playbook_on_stats":
            artifact_data = data.get("artifact_data", {})
            if "failures" in data:
                failed_hosts = {*data["failures"], *data.get("dark", {})}
        elif event["event"] == "runner_on_unreachable":
            failures.append(Failure(data["host"], "unreachable", _message(data)))
        elif event["event"] == "runner_on_failed" and not data.get("ignore_errors"):
            failures.append(Failure(data["host"], data["task"], _message(data)))
    # What failed on a host that did not fail was rescued.
    kept = [each for each in failures if failed_hosts is None or each.host in failed_hosts]
    return RunResult(artifact_data, tuple(kept), said)


def _message(data: Mapping[str, Any]) -> str:
    return str(data["res"].get("msg", data["res"]))
