#!/usr/bin/python
"""Make the release that the tiers are given the current one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tier_release
short_description: Make the release that the tiers are given the current one
description:
  - Moves the links C(current) and C(previous) beside the releases. An activation that fails moves them back.
options:
  release: {description: Folder of the release, type: path, required: true}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Make the release of the tiers the current one
  tier_release:
    release: /opt/llama-tiers/releases/0c1e57098-cuda12.4-61_86-555c6e0b
"""

RETURN = r"""
current: {description: Name of the release that is current, type: str, returned: success}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"release": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    from checker import activation, releases

    name = Path(module.params["release"]).name
    if module.check_mode:
        module.exit_json(changed=releases.linked()[-1:] != (name,), current=name)
    with activation.alone():
        changed = releases.make_current(name)
    module.exit_json(changed=changed, current=name)


if __name__ == "__main__":
    main()
