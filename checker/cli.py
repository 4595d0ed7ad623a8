"""The command `checker`: exit 0 pass, 1 a verdict failed, 2 could not run.

On a host it is installed with the host half alone, so what only a controller has is imported where it is used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from checker import __version__

PASSED, FAILED, COULD_NOT_RUN = 0, 1, 2

ROOT = Path(__file__).resolve().parents[1]

# The task of the role `verification` that fails a host whose verdict is "fail".
GATE = "Refuse tiers that did not pass"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    code: int = options.run(options)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="checker", description="Measures and judges the tiers of llama.cpp hosts.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    verify = commands.add_parser(
        "verify",
        help="measure and judge every tier of an inventory's hosts",
        epilog="exit code: 0 every tier passed, 1 a tier failed, 2 a host could not be measured",
    )
    verify.add_argument("-i", "--inventory", required=True, help="an Ansible inventory, such as inventories/production")
    verify.add_argument("--limit", metavar="HOSTS", help="only these hosts or groups of it")
    verify.add_argument("--format", choices=["table", "json"], default="table", help="how to print (default: table)")
    verify.set_defaults(run=_verify)

    ready = commands.add_parser("ready", help="on a host: wait until a tier is ready (ExecStartPost= of its unit)")
    ready.add_argument("tier", metavar="TIER")
    ready.set_defaults(run=_ready)
    return parser


def _ready(options: argparse.Namespace) -> int:
    from checker import readiness

    return readiness.main(options.tier)


def _verify(options: argparse.Namespace) -> int:
    if not (ROOT / "playbooks" / "verify.yml").is_file():
        return _could_not("verify needs the repository's playbooks; run it from a checkout: .venv/bin/checker")
    inventory = Path(options.inventory).resolve()
    if not inventory.exists():
        return _could_not(f"no inventory at {options.inventory}; give -i a file or folder, such as inventories/lab")
    try:
        from checker import reports, runner
    except ImportError as error:
        return _could_not(f"{error.name} is not installed here; `make setup` in the checkout installs it")

    result = runner.run(ROOT, "playbooks/verify.yml", inventory, options.limit)
    hosts = list(result.artifact_data.get("llama_tiers", {}).values())
    if hosts:
        print(reports.render({"schema": reports.SCHEMA, "hosts": hosts}, options.format))
    failures = [failure for failure in result.failures if failure.task != GATE]
    for failure in failures:
        _could_not(f"{failure.host}: {failure.task}: {failure.message}")
    if not hosts and not failures:
        return _could_not(f"no host of the group gpu_hosts in {options.inventory} was measured\n{result.said}")
    if failures:
        return COULD_NOT_RUN
    return PASSED if all(host["passed"] for host in hosts) else FAILED


def _could_not(reason: str) -> int:
    print(f"checker: {reason}", file=sys.stderr)
    return COULD_NOT_RUN


if __name__ == "__main__":
    sys.exit(main())
