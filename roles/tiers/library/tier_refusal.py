#!/usr/bin/python
"""Refuse tiers that were rolled back as they are planned now."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tier_refusal
short_description: Refuse tiers that were rolled back as they are planned now
description:
  - Fails when a tier that is to be started failed its verification, or was slower than what was accepted before, when
    it was just so (cards, driver, model, release, placement and flags), and nothing as slow was accepted since.
options:
  specs:
    description: Tier spec documents.
    type: list
    elements: dict
    required: true
  accepted: {description: File on the host that keeps what was accepted and refused, type: path, required: true}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Refuse what was rolled back
  tier_refusal:
    specs: "{{ specs }}"
    accepted: /var/lib/llama-tiers/accepted.json
"""

RETURN = r"""
problems: {description: One sentence for each tier that is refused, type: list, elements: str, returned: failure}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "specs": {"type": "list", "elements": "dict", "required": True},
            "accepted": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    from checker import acceptance, tier

    specs = [tier.from_json(document) for document in module.params["specs"]]
    try:
        problems = acceptance.refusals(specs, acceptance.read(Path(module.params["accepted"])))
    except ValueError as error:
        module.fail_json(msg=str(error))
    if problems:
        module.fail_json(msg="\n".join(problems), problems=list(problems))
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
