"""The command `checker`: exit 0 pass, 1 a verdict failed, 2 could not run; as a shell has it, 130 after Ctrl-C.

On a host it is installed with the host half alone, so what only a controller has is imported where it is used.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from checker import __version__

PASSED, FAILED, COULD_NOT_RUN = 0, 1, 2
# 128 and the number of the signal: what a shell says of a program that it ends.
INTERRUPTED, NOBODY_READS = 130, 141

ROOT = Path(__file__).resolve().parents[1]

# The task of the role `verification` that fails a host whose verdict is "fail".
GATE = "Refuse tiers that did not pass"

# What hosts do by themselves then, when nobody follows them any more.
_TRIAL_INTERRUPTED = (
    "checker: interrupted: within 30 s each host ends its trial, and starts what served before; what was measured by "
    "then is kept there, and the next run goes on with the rest"
)


class _NoOutput(Exception):
    """Standard output cannot be written; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        options = _parser().parse_args(arguments)
        code: int = options.run(options)
    except KeyboardInterrupt:
        print("checker: interrupted", file=sys.stderr)
        return INTERRUPTED
    except _NoOutput as error:
        return _could_not(str(error))
    except BrokenPipeError:
        return NOBODY_READS
    except Exception:
        # Python's own exit code for it is 1, which would say that a verdict failed.
        traceback.print_exc()
        return COULD_NOT_RUN
    return code


def _show(text: str) -> None:
    """Print to standard output; BrokenPipeError when nobody reads it, _NoOutput when it cannot be written."""
    try:
        print(text, flush=True)
    except OSError as error:
        # What is left in the buffer would be written, and complained of, once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise _NoOutput(f"standard output cannot be written: {error.strerror}") from error


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
    _add_format(verify)
    verify.add_argument("--quick", action="store_true", help="one short completion for each tier, no speeds")
    verify.add_argument(
        "--quality",
        action="store_true",
        help="also compare each split with the unsplit model; stops every tier of the hosts for some minutes",
    )
    verify.add_argument(
        "--accept-slower",
        action="store_true",
        help="accept a release or placement that is slower than what was accepted before",
    )
    verify.set_defaults(run=_verify)

    report = commands.add_parser(
        "report",
        help="print what the hosts were verified with last, for people, CI systems or Prometheus; asks no host",
        epilog="exit code: 0 every tier had passed, 1 a tier had failed, 2 there is no evidence",
    )
    report.add_argument("--evidence", metavar="DIR", help="folder of <host>.json (default: evidence of the checkout)")
    _add_format(report)
    report.set_defaults(run=_report)

    plan = commands.add_parser(
        "plan",
        help="say what fits where on a host, with which split, and how fast; needs no host and no network",
        epilog="exit code: 0 every tier fits, 1 something does not fit, 2 a host could not be planned",
    )
    where = plan.add_argument_group("the host")
    where.add_argument("-i", "--inventory", help="an Ansible inventory, such as inventories/production")
    where.add_argument("--limit", metavar="HOSTS", help="only these hosts or groups of the inventory")
    where.add_argument("--hardware", metavar="FILE", help="a host profile as YAML (docs/planning.md)")
    what = plan.add_argument_group("what to plan (default: all tiers of the inventory)")
    which = what.add_mutually_exclusive_group()
    which.add_argument("--tier", help="only this tier of the inventory")
    which.add_argument("--model", metavar="NAME_OR_GGUF", help="a model of the catalogue, a GGUF file or its URL")
    what.add_argument("--context", type=_number(256, 2**31), metavar="N", help="tokens of context")
    what.add_argument("--cache-type", choices=["f16", "q8_0"], help="type of the KV cache")
    what.add_argument("--ubatch", type=_number(32, 2048), metavar="N", help="tokens of a micro-batch")
    what.add_argument(
        "--tensor-split",
        type=_split,
        metavar="A,B",
        help="whole layers (or proportions, as llama.cpp takes them) by card",
    )
    what.add_argument(
        "--gpu-layers", type=_gpu_layers, metavar="N", help="layers on the cards, or auto: as many as fit"
    )
    plan.add_argument("--format", choices=["table", "json"], default="table", help="how to print (default: table)")
    plan.set_defaults(run=_plan)

    trial = commands.add_parser(
        "trial",
        help="run the candidates of the hosts' tiers one by one and write down what was measured",
        description="Stops what serves while candidates run, and starts it again afterwards, whatever happens. What "
        "was measured before with the same model, release, driver, cards and command line is not run again.",
        epilog="exit code: 0 every candidate was tried, 2 a host could not be tried, 130 it was interrupted; with "
        "--dry-run 0 every tier has a candidate with room, 1 a tier has none, 2 a host could not be planned",
    )
    trial.add_argument("-i", "--inventory", required=True, help="an Ansible inventory, such as inventories/production")
    trial.add_argument("--limit", metavar="HOSTS", help="only these hosts or groups of it")
    trial.add_argument("--tier", help="only this tier")
    trial.add_argument("--again", action="store_true", help="also run again what was measured before")
    trial.add_argument(
        "--dry-run", action="store_true", help="only say which candidates have room; needs no host and no network"
    )
    trial.add_argument("--format", choices=["table", "json"], default="table", help="how to print (default: table)")
    trial.set_defaults(run=_trial)

    decide = commands.add_parser(
        "decide",
        help="choose each tier's candidate by what was measured in trials, and write that into the inventory",
        description="Holds the trials of each host against a policy of catalogue/policies.yml, says why each candidate "
        "is chosen or not, and writes host_vars/<host>/decision.yml, which site.yml then serves. Asks no host.",
        epilog="exit code: 0 decided, 1 no policy finds a candidate for each tier, 2 a host could not be decided for",
    )
    decide.add_argument("-i", "--inventory", required=True, help="an Ansible inventory, such as inventories/production")
    decide.add_argument("--limit", metavar="HOSTS", help="only these hosts or groups of it")
    decide.add_argument("--policy", metavar="NAME", help="the policy to try first (default: the catalogue's)")
    decide.add_argument("--evidence", metavar="DIR", help="folder that holds trials/<host> (default: of the inventory)")
    decide.add_argument("--dry-run", action="store_true", help="say what would be decided, and write nothing")
    decide.add_argument("--format", choices=["table", "json"], default="table", help="how to print (default: table)")
    decide.set_defaults(run=_decide)

    lock = commands.add_parser(
        "lock",
        help="complete the catalogue: sha256, sizes and headers of its models, from the hub or from a file",
        description="Asks the hub (HF_ENDPOINT, HF_TOKEN) for the sha256 and size of each model's files, reads headers "
        "by range (below 16 MB of transfer a model), and writes what was not known into the catalogue.",
        epilog="exit code: 0 all that was asked for is known, 1 a model is another one than the catalogue says, or "
        "something stays unknown, 2 a model could not be asked for",
    )
    lock.add_argument("names", nargs="*", metavar="NAME", help="models of the catalogue (default: all)")
    lock.add_argument("--catalogue", metavar="FILE", help="default: catalogue/models.yml of the checkout")
    lock.add_argument("--file", metavar="GGUF", help="read the only NAME from this file, of which every byte is hashed")
    lock.add_argument("--format", choices=["table", "json"], default="table", help="how to print (default: table)")
    lock.set_defaults(run=_lock)

    wait = commands.add_parser("wait", help="on a host: wait for a tier's cards (ExecStartPre= of its unit)")
    wait.add_argument("tier", metavar="TIER")
    wait.set_defaults(run=_wait)

    ready = commands.add_parser("ready", help="on a host: wait until a tier is ready (ExecStartPost= of its unit)")
    ready.add_argument("tier", metavar="TIER")
    ready.set_defaults(run=_ready)

    drain = commands.add_parser("drain", help="on a host: wait until a tier is idle (ExecStop= of its proxy)")
    drain.add_argument("tier", metavar="TIER")
    drain.add_argument("--residency", type=_number(0, 10**6), default=0, metavar="S", help="seconds it serves at least")
    drain.add_argument("--at-most", type=_number(0, 10**6), default=120, metavar="S", help="seconds to wait then")
    drain.add_argument("--clients-only", action="store_true", help="do not wait for what asks its server directly")
    drain.set_defaults(run=_drain)
    return parser


def _add_format(command: argparse.ArgumentParser) -> None:
    # As in checker.reports, which a host need not import to be ready.
    formats = ["table", "json", "markdown", "junit", "prometheus"]
    command.add_argument("--format", choices=formats, default="table", help="how to print (default: table)")


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # As many digits as no number here has would take int() long, or make it fail.
        if not text.isdecimal() or len(text) > 20 or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def _gpu_layers(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return _number(1, 2**31)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor auto: as many as fit; leave it out for all") from None


def _split(text: str) -> tuple[float, ...]:
    try:
        parts = tuple(float(part) for part in text.replace("/", ",").split(","))
    except ValueError:
        parts = ()
    if 0 in parts:
        raise argparse.ArgumentTypeError(
            f"{text!r} leaves a card without layers: give each at least one, or take the card out of the list of cards"
        )
    if not parts or not all(0 < part < 1e6 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of layers such as 38,11")
    return parts


def _plan(options: argparse.Namespace) -> int:
    try:
        from checker import planning
        from checker.catalogue import InventoryError
        from checker.reports import plans
    except ImportError as error:
        return _could_not(f"{error.name} is not installed here; `make setup` in the checkout installs it")
    if options.inventory is None and options.hardware is None:
        return _could_not("name the host: -i INVENTORY, or --hardware FILE with --model")
    if options.inventory is None and options.model is None:
        return _could_not("a hardware file has no tiers: say what to plan with --model, or add -i INVENTORY")
    wishes = planning.Wishes(
        tier=options.tier,
        model=options.model,
        context=options.context,
        cache_type=options.cache_type,
        ubatch=options.ubatch,
        tensor_split=options.tensor_split,
        gpu_layers=options.gpu_layers,
    )
    try:
        models, engines = planning.read_catalogues(ROOT)
        subjects = planning.subjects(ROOT, options.inventory, options.limit, options.hardware)
    except planning.PlanningError as error:
        return _could_not(str(error))
    documents: list[dict[str, Any]] = []
    failed: dict[str, list[str]] = {}
    for subject in subjects:
        try:
            documents.append(planning.make(subject, wishes, models, engines))
        except (planning.PlanningError, InventoryError) as error:
            failed.setdefault(str(error), []).append(subject.name)
    if documents:
        _show(plans.render(documents, options.format))
    if _tell(failed):
        return COULD_NOT_RUN
    fit = all(tier["verdict"] == "fits" for document in documents for tier in document["tiers"])
    together = all(exclusion["switched"] for document in documents for exclusion in document["exclusions"])
    return PASSED if fit and together else FAILED


def _trial(options: argparse.Namespace) -> int:
    try:
        from checker import deciding, planning, runner
        from checker.catalogue import InventoryError
        from checker.reports import trials
    except ImportError as error:
        return _could_not(f"{error.name} is not installed here; `make setup` in the checkout installs it")
    try:
        models, engines = planning.read_catalogues(ROOT)
        subjects = planning.subjects(ROOT, options.inventory, options.limit, None)
    except planning.PlanningError as error:
        return _could_not(str(error))
    if not options.dry_run:
        variables = {"trial_tier": options.tier or "", "trial_again": options.again}
        inventory = Path(options.inventory).expanduser().resolve()
        try:
            result = runner.run(ROOT, "playbooks/trial.yml", inventory, options.limit, variables, _say)
        except KeyboardInterrupt:
            _say(_TRIAL_INTERRUPTED)
            return INTERRUPTED
        tried = result.artifact_data.get("llama_tiers_trials", {})
        outdated = {}
        for subject in (each for each in subjects if each.name in tried):
            try:
                outdated[subject.name] = deciding.outdated(subject, tried[subject.name], models, engines)
            except (planning.PlanningError, InventoryError) as error:
                _say(f"checker: {subject.name}: which of its trials are old is not known: {error}")
        if tried:
            _show(trials.render(tried, outdated, options.format))
        for failure in result.failures:
            _could_not(f"{failure.host}: {failure.task}: {failure.message}")
        if not tried and not result.failures:
            return _could_not(f"no host of the group gpu_hosts in {options.inventory} was tried\n{result.said}")
        return COULD_NOT_RUN if result.failures else PASSED
    documents: list[dict[str, Any]] = []
    failed: dict[str, list[str]] = {}
    for subject in subjects:
        try:
            documents.append(planning.screen(subject, options.tier, models, engines))
        except (planning.PlanningError, InventoryError) as error:
            failed.setdefault(str(error), []).append(subject.name)
    if documents:
        _show(trials.screening(documents, options.format))
    if _tell(failed):
        return COULD_NOT_RUN
    room = [
        any(candidate["verdict"] == "fits" for candidate in tier["candidates"])
        for document in documents
        for tier in document["tiers"]
    ]
    return PASSED if all(room) else FAILED


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _decide(options: argparse.Namespace) -> int:
    try:
        from checker import deciding, decision, planning
        from checker.catalogue import InventoryError
        from checker.reports import decisions
    except ImportError as error:
        return _could_not(f"{error.name} is not installed here; `make setup` in the checkout installs it")
    try:
        models, engines = planning.read_catalogues(ROOT)
        policies = deciding.read_policies(ROOT / "catalogue" / "policies.yml")
        subjects = planning.subjects(ROOT, options.inventory, options.limit, None)
    except (planning.PlanningError, InventoryError) as error:
        return _could_not(str(error))
    evidence = Path(options.evidence).resolve() if options.evidence else None
    inventory = Path(options.inventory).expanduser().resolve()
    explained: list[dict[str, Any]] = []
    failed: dict[str, list[str]] = {}
    written, standing = [], {}
    for subject in subjects:
        try:
            trials = deciding.read_trials(deciding.directory_of(ROOT, subject, evidence))
            found = deciding.decide(subject, trials, policies, options.policy, models, engines)
            document = decision.to_json(found)
            if document is None:
                standing[subject.name] = deciding.stands(inventory, found)
            elif options.dry_run:
                path = deciding.path_of(inventory, subject.name)
                standing[subject.name] = f"not written (dry run): {path}; {deciding.would_write(path, document)}"
            else:
                path = deciding.path_of(inventory, subject.name)
                changed = deciding.write(path, deciding.text_of(document))
                written.append(f"{path}: {'written; review it, and run site.yml' if changed else 'as it was'}")
        except (planning.PlanningError, InventoryError) as error:
            failed.setdefault(str(error), []).append(subject.name)
        else:
            explained.append(decision.explanation(found))
    if explained:
        _show(decisions.render(explained, standing, options.format))
    for line in written:
        print(f"checker: {line}", file=sys.stderr)
    if _tell(failed):
        return COULD_NOT_RUN
    return PASSED if all(document["decision"] for document in explained) else FAILED


def _tell(failed: dict[str, list[str]]) -> bool:
    """Say for which hosts something could not be done, by reason; return whether there are any."""
    for reason, hosts in failed.items():
        _could_not("\n".join(f"{', '.join(hosts)}: {line}" for line in reason.splitlines()))
    return bool(failed)


def _lock(options: argparse.Namespace) -> int:
    try:
        from checker import catalogue_file, lock
        from checker.catalogue import parse_inventory
        from checker.reports import locks
    except ImportError as error:
        return _could_not(f"{error.name} is not installed here; `make setup` in the checkout installs it")
    path = Path(options.catalogue) if options.catalogue else ROOT / "catalogue" / "models.yml"
    if options.file and len(options.names) != 1:
        return _could_not("--file is the file of one model: name that model, and no other")
    try:
        text, document = catalogue_file.read(path)
        _, _, models, problems = parse_inventory([], [], document)
        unknown = sorted(set(options.names) - set(document))
        if unknown:
            return _could_not(f"{path} has no model {', '.join(unknown)}; it has: {', '.join(sorted(document))}")
        if problems:
            return _could_not(f"{path} is not right:\n" + "\n".join(problems))
        wanted = {name: models[name] for name in options.names or models}
        outcomes = lock.lock(path, wanted, text, Path(options.file) if options.file else None)
    except catalogue_file.CatalogueFileError as error:
        return _could_not(str(error))
    _show(locks.render(outcomes, str(path), options.format))
    statuses = {outcome.status for outcome in outcomes}
    if "failed" in statuses:
        return COULD_NOT_RUN
    return FAILED if statuses & {"differs", "incomplete"} else PASSED


def _ready(options: argparse.Namespace) -> int:
    from checker import readiness

    return readiness.main(options.tier)


def _wait(options: argparse.Namespace) -> int:
    from checker import arrival

    return arrival.main(options.tier)


def _drain(options: argparse.Namespace) -> int:
    from checker import drain

    return drain.main(options.tier, options.residency, options.at_most, clients_only=options.clients_only)


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

    variables = {
        "verification_depth": "quick" if options.quick else "whole",
        "verification_quality": options.quality,
        "verification_accept_slower": options.accept_slower,
    }
    result = runner.run(ROOT, "playbooks/verify.yml", inventory, options.limit, variables)
    hosts = list(result.artifact_data.get("llama_tiers", {}).values())
    if hosts:
        _show(reports.render({"schema": reports.SCHEMA, "hosts": hosts}, options.format))
    failures = [failure for failure in result.failures if failure.task != GATE]
    for failure in failures:
        _could_not(f"{failure.host}: {failure.task}: {failure.message}")
    if not hosts and not failures:
        return _could_not(f"no host of the group gpu_hosts in {options.inventory} was measured\n{result.said}")
    if failures:
        return COULD_NOT_RUN
    return PASSED if all(host["passed"] for host in hosts) else FAILED


def _report(options: argparse.Namespace) -> int:
    try:
        from checker import reports
    except ImportError as error:
        return _could_not(f"{error.name} is not installed here; `make setup` in the checkout installs it")

    directory = Path(options.evidence) if options.evidence else ROOT / "evidence"
    hosts = []
    for path in sorted(directory.glob("*.json")):
        try:
            hosts.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            return _could_not(f"{path} cannot be read as evidence: {error}")
    if not hosts:
        return _could_not(f"no evidence in {directory}: run `checker verify` first, or name the folder with --evidence")
    _show(reports.render({"schema": reports.SCHEMA, "hosts": hosts}, options.format))
    return PASSED if all(host["passed"] for host in hosts) else FAILED


def _could_not(reason: str) -> int:
    print(f"checker: {reason}", file=sys.stderr)
    return COULD_NOT_RUN


if __name__ == "__main__":
    sys.exit(main())
