"""What runs on a host can be imported there: beside the checker only requests and nvidia-ml-py are installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTROLLER_ONLY = ("pydantic", "rich", "gguf", "ansible_runner", "yaml", "numpy")

# Modules that run on the controller although a role holds them (delegate_to: localhost).
DELEGATED = {"inventory_check", "host_check", "quality_ranks", "tier_plan", "trial_plan"}


def imported_by_host_modules() -> set[str]:
    found = {"checker.readiness"}  # `checker ready`, which the units call
    for path in [*ROOT.glob("roles/*/library/*.py"), *ROOT.glob("plugins/modules/*.py")]:
        if path.stem in DELEGATED:
            continue
        for package, names in re.findall(r"^ *from (checker[.\w]*) import ([\w, ]+)", path.read_text(), re.MULTILINE):
            found |= {f"checker.{name}" for name in names.split(", ")} if package == "checker" else {package}
    return found


@pytest.mark.parametrize("module", sorted(imported_by_host_modules()))
def test_imports_without_what_only_a_controller_has(module: str) -> None:
    program = f"import sys; sys.modules.update(dict.fromkeys({CONTROLLER_ONLY!r})); import {module}"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["checker.arrival", "checker.drain", "checker.readiness"])
def test_what_a_client_waits_for_starts_without_a_large_library(module: str) -> None:
    """`requests` takes 0.1 s of a fast processor, and a request to a cold tier waits for these."""
    program = f"import sys, {module}; sys.exit('requests' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
