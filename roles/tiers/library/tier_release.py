#!/usr/bin/python
"""Make the release that the tiers are given the current one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tier_release
short_description: Make the release that the tiers are given the current one
description:
  - Moves the links C(current) and C(previous) beside the releases. An activation that fails moves them back.
  - A release that a run which was cut off has made current, and that no tier is proven with, is passed over on the way.
options:
  release:
    description: Folder of the release. Without it the one that tiers are proven with is current again.
    type: path
attributes:
  check_mode:
    support: full
    details: Without O(release) it tells of no change.
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Make the release of the tiers the current one
  tier_release:
    release: /opt/llama-tiers/releases/0c1e57098-cuda12.4-61_86-555c6e0b

- name: Leave a release that no tier is proven with
  tier_release: {}
"""

RETURN = r"""
current: {description: Name of the release that is current; none without any, type: str, returned: success}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"release": {"type": "path"}},
        supports_check_mode=True,
    )
    from checker import activation, releases

    name = Path(module.params["release"]).name if module.params["release"] else None
    if module.check_mode:
        module.exit_json(changed=name is not None and releases.linked()[-1:] != (name,), current=name)
    with activation.alone():
        before = releases.linked()
        if name is None:
            activation.leave_unproven_release()
        else:
            activation.take_release(name)
        after = releases.linked()
    module.exit_json(changed=after != before, current=after[-1] if after else None)


if __name__ == "__main__":
    main()
