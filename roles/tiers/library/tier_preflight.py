#!/usr/bin/python
"""Check, on the host, what can be refused of the tiers before anything is written."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tier_preflight
short_description: Check ports, certificates, flags and what was rolled back before anything is written
description:
  - Fails when a tier's port is taken by a process that is no tier, or by the TLS of one, naming that process.
  - Fails when a tier's certificate cannot be served with its key, or is not valid now.
  - Fails when a tier's command line has a flag that its llama-server does not name in C(--help).
  - With O(accepted), fails when a tier that is to be started failed its verification, or was slower than what was
    accepted before, when it was just so (cards, driver, model, release, placement and flags), and nothing as slow was
    accepted since.
options:
  specs:
    description: Tier spec documents.
    type: list
    elements: dict
    required: true
  accepted: {description: File on the host that keeps what was accepted and rolled back, type: path}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Check ports, certificates, flags and what was rolled back
  tier_preflight:
    specs: "{{ specs }}"
    accepted: /var/lib/llama-tiers/accepted.json
"""

RETURN = r"""
problems: {description: One sentence for each problem, type: list, returned: failure}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def _unknown_flags(module, spec, help_of):
    from checker import argv

    binary = spec["argv"][0]
    if not Path(binary).exists():  # check mode before the first build
        return
    if binary not in help_of:
        help_of[binary] = module.run_command([binary, "--help"], check_rc=True)[1]
    for flag in argv.unknown_flags(spec["argv"], help_of[binary]):
        yield (
            f"tier {spec['name']}: {binary} does not know {flag}; "
            "mend the flags of this engine in catalogue/engines.yml, or take another engine"
        )


def _taken(name, what, port, is_ours):
    from checker import ports

    for listener in ports.listeners(port):
        if not is_ours(listener.unit):
            unit = f", {listener.unit}" if listener.unit else ""
            fix = "stop it, or give the tier another port"
            if listener.unit.startswith("llama-tier-"):
                fix = "that is freed later than this port is opened: take another one now, and this one in a later run"
            yield f"tier {name}: {what} {port} is taken by {listener.name} (pid {listener.pid}{unit}); {fix}"


def _ports(spec):
    # The proxy of a tier has its socket too.
    yield from _taken(
        spec["name"],
        "port",
        spec["port"],
        lambda unit: unit.startswith("llama-tier-") and not unit.endswith("-tls.service"),
    )
    if spec.get("tls"):
        yield from _taken(spec["name"], "TLS port", spec["tls"]["port"], lambda unit: unit.startswith("llama-tier-"))


def _certificate(spec):
    if not spec.get("tls"):
        return
    from checker import tls

    try:
        tls.check(Path(spec["tls"]["certificate"]), Path(spec["tls"]["key"]))
    except tls.TlsError as error:
        fix = "renew it" if error.fault is tls.Fault.NOT_OF_NOW else "mend the files on the host, or name others"
        yield f"tier {spec['name']}: api.tls: {error}; {fix}"


def _rolled_back(module, documents, path):
    from checker import acceptance, tier

    specs = [tier.from_json(document) for document in documents]
    try:
        return acceptance.refusals(specs, acceptance.read(path))
    except ValueError as error:
        module.fail_json(msg=str(error))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "specs": {"type": "list", "elements": "dict", "required": True},
            "accepted": {"type": "path"},
        },
        supports_check_mode=True,
    )
    problems = []
    help_of: dict[str, str] = {}
    for spec in module.params["specs"]:
        problems += _unknown_flags(module, spec, help_of)
        problems += _ports(spec)
        problems += _certificate(spec)
    if module.params["accepted"]:
        problems += _rolled_back(module, module.params["specs"], Path(module.params["accepted"]))
    if problems:
        module.fail_json(msg="\n".join(problems), problems=problems)
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
