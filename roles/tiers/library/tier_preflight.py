#!/usr/bin/python
"""Check, on the host, what can be refused of the tiers before anything is written."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tier_preflight
short_description: Check ports, flags and what was rolled back before anything is written
description:
  - Fails when a tier's port is taken by a process that is no tier, naming that process.
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
- name: Check ports, flags and what was rolled back
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
    from checker import ports

    problems = []
    help_of: dict[str, str] = {}
    for spec in module.params["specs"]:
        problems += _unknown_flags(module, spec, help_of)
        for listener in ports.listeners(spec["port"]):
            # The proxy of a tier has its socket too.
            if not listener.unit.startswith("llama-tier-"):
                unit = f", {listener.unit}" if listener.unit else ""
                problems.append(
                    f"tier {spec['name']}: port {spec['port']} is taken by {listener.name} (pid {listener.pid}{unit}); "
                    "stop it, or give the tier another port"
                )
    if module.params["accepted"]:
        problems += _rolled_back(module, module.params["specs"], Path(module.params["accepted"]))
    if problems:
        module.fail_json(msg="\n".join(problems), problems=problems)
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
