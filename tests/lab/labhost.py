"""Run commands against the lab host that the tests look at."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAB = Path(os.environ.get("LAB_DIRECTORY", ROOT / ".lab"))
SUITE = os.environ.get("LAB_SUITE", "bookworm")

Run = subprocess.CompletedProcess[str]


def run(*command: str | Path, timeout: float = 1800) -> Run:
    """Run a command in the repository, with the tools of .venv and the repository's Ansible configuration."""
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


def playbook(name: str, *arguments: str) -> Run:
    """Run a playbook against the lab inventory."""
    return run("ansible-playbook", "-i", "inventories/lab", *arguments, name)
