"""Run commands against the lab host that the tests look at."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LAB = Path(os.environ.get("LAB_DIRECTORY", ROOT / ".lab"))
# The cards of tests/lab/gpu/cards.
BIG = "GPU-3060a11a-0000-4000-8000-000000000001"
SMALL = "GPU-10603b00-0000-4000-8000-000000000002"
DROP_INS = "/run/systemd/system/llama-tier-deep.service.d"
SUITE = os.environ.get("LAB_SUITE", "bookworm")

Run = subprocess.CompletedProcess[str]


def run(*command: str | Path, timeout: float = 3600) -> Run:
    """Run a command in the repository, with the tools of .venv and the repository's Ansible configuration.

    A first run compiles the engine: with nothing in the compiler's cache, beside two others on two cores, that alone
    was seen to take more than half an hour.
    """
    environment = os.environ | {
        "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
    }
    return subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def ssh(command: str) -> Run:
    """Run a shell command on the lab host."""
    return run("ssh", "-F", LAB / "ssh_config", "gpuhost", command)


def ssh_ok(command: str) -> str:
    """Run a shell command on the lab host that has to succeed; return its output."""
    result = ssh(command)
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout


@contextmanager
def tunnel(port: int) -> Iterator[str]:
    """Forward a port of this machine to one of the lab host's loopback, as a user does; yield the URL of it here."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        here: int = free.getsockname()[1]
    forward = f"{here}:127.0.0.1:{port}"

    def tell(what: str) -> None:
        told = run("ssh", "-F", LAB / "ssh_config", "-O", what, "-L", forward, "gpuhost")
        assert told.returncode == 0, told.stderr

    # The shared connection, which takes the forwarding, is there after a command.
    ssh_ok("true")
    tell("forward")
    try:
        yield f"http://127.0.0.1:{here}"
    finally:
        tell("cancel")


def playbook(name: str, *arguments: str) -> Run:
    """Run a playbook against the lab inventory."""
    return run("ansible-playbook", "-i", "inventories/lab", *arguments, name)


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


def main_pids() -> dict[str, str]:
    return {tier: ssh_ok(f"systemctl show -P MainPID llama-tier-{tier}").strip() for tier in ("fast", "deep")}


def status_of(port: int, key: str | None) -> str:
    """Return the HTTP status of a one-token completion."""
    header = f'-H "Authorization: Bearer $(cat /etc/llama-tiers/keys/{key})"' if key else ""
    return ssh_ok(
        f"curl -s -o /dev/null -w '%{{http_code}}' {header} http://127.0.0.1:{port}/completion "
        """-d '{"prompt": "1", "n_predict": 1}'"""
    )


def verify(*, whole: bool = False, quality: bool = False) -> tuple[int, dict[str, Any]]:
    """Run `checker verify --format json`; return its exit code and its document."""
    chosen = (*(() if whole else ("--quick",)), *(("--quality",) if quality else ()))
    result = run(ROOT / ".venv/bin/checker", "verify", "-i", "inventories/lab", "--format", "json", *chosen)
    return result.returncode, json.loads(result.stdout) if result.stdout.strip() else {}
