#!/usr/bin/python
"""Judge on the controller what gpu_facts read on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_check
short_description: Hold a host against the inventory
description:
  - Fails with every problem at once, one on a line; each names the thing, the value and the fix.
  - Runs on the controller with the Python that has the controller's requirements.
options:
  host: {description: Name of the host, type: str, required: true}
  profile: {description: What gpu_facts returned, type: dict, required: true}
  gpus: {description: The cards of the host as the inventory has them, type: list, elements: dict, required: true}
  needs:
    description: What is to lie on the host, as inventory_check returned it, and the build.
    type: list
    elements: dict
    required: true
  min_ram_mib: {description: Memory that the host must have, type: int, required: true}
  toolkit: {description: How the CUDA toolkit is to be had, type: str, default: detect}
  toolkit_path: {description: The toolkit's folder for the way C(path), type: str, default: ""}
  mends:
    description: Variables of the role that let it mend what it finds, of those that are true.
    type: list
    elements: str
    default: []
  mended:
    description: Whether that was done already; before, as in check mode, what will be mended is no problem.
    type: bool
    default: true
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Judge the host
  host_check:
    host: "{{ inventory_hostname }}"
    profile: "{{ __gpu_host_read.profile }}"
    gpus: "{{ gpus }}"
    needs: "{{ __gpu_host_inventory.needs }}"
    min_ram_mib: 4096
  delegate_to: localhost
"""

RETURN = r"""
problems: {description: One sentence for each problem, type: list, elements: str, returned: failure}
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "profile": {"type": "dict", "required": True},
            "gpus": {"type": "list", "elements": "dict", "required": True},
            "needs": {"type": "list", "elements": "dict", "required": True},
            "min_ram_mib": {"type": "int", "required": True},
            "toolkit": {"type": "str", "default": "detect"},
            "toolkit_path": {"type": "str", "default": ""},
            "mends": {"type": "list", "elements": "str", "default": []},
            "mended": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    try:
        from checker import preflight
        from checker.toolkit import Wish
    except ImportError as error:
        module.fail_json(msg=missing_required_lib(error.name or "checker"))
    given = module.params
    needs = [preflight.Need(**need) for need in given["needs"]]
    profile = preflight.from_json(given["profile"])
    problems = preflight.judge(profile, given["gpus"], needs, given["min_ram_mib"])
    wish = Wish(given["toolkit"], given["toolkit_path"])
    problems += preflight.cuda_problems(profile, given["gpus"], wish, given["mends"], mended=given["mended"])
    if problems:
        module.fail_json(msg=f"{given['host']} is not ready:\n" + "\n".join(problems), problems=problems)
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
