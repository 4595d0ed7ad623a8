"""Every module of the project, and how Ansible runs one: a process of its own, arguments on stdin, JSON on stdout."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODULES = {path.stem: path for path in sorted([*ROOT.glob("plugins/modules/*.py"), *ROOT.glob("roles/*/library/*.py")])}


def run(module: str, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
    """Run a module and return what it says; its exit status has to agree with that."""
    done = subprocess.run(
        [sys.executable, str(MODULES[module])],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check}}),
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert bool(result.get("failed")) == (done.returncode != 0), done
    return result


class Ended(Exception):
    """The module said what it had to say."""


def run_here(module: str, params: dict[str, Any], *, check: bool = False) -> dict[str, Any]:
    """Run a module in this process, where a test can play what is around it; return what it says."""
    said: dict[str, Any] = {}

    class Module:
        def __init__(self, **_: Any) -> None:
            self.params, self.check_mode = params, check

        def exit_json(self, **result: Any) -> None:
            said.update(result)
            raise Ended

        def fail_json(self, **result: Any) -> None:
            self.exit_json(failed=True, **result)

    source = importlib.util.spec_from_file_location(module, MODULES[module])
    assert source and source.loader
    loaded = importlib.util.module_from_spec(source)
    source.loader.exec_module(loaded)
    vars(loaded)["AnsibleModule"] = Module
    with suppress(Ended):
        loaded.main()
    assert said
    return said
