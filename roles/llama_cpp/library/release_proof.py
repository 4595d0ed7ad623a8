#!/usr/bin/python
"""Prove a release before it becomes the current one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_proof
short_description: Prove that a built release serves the cards and knows the flags
description:
  - The server names every flag that a tier's command line may hold.
  - With cards, the server holds machine code for each of them, and lists each of them once, in the order of their
    UUIDs, all together and each alone.
  - Fails with everything that does not hold, one sentence a line. Runs on the host with the checker's interpreter.
options:
  server: {description: The built llama-server, type: path, required: true}
  flags: {description: Flags that engines spell differently (catalogue/engines.yml), type: dict, required: true}
  cards:
    description: The cards that CUDA is to serve, each with C(uuid), C(name) and C(compute_capability).
    type: list
    elements: dict
    default: []
  architectures: {description: What was asked of the compiler, type: list, elements: str, default: []}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Prove the release
  release_proof:
    server: /opt/llama-tiers/releases/example/bin/llama-server
    flags: "{{ engines['0c1e57098'].flags }}"
"""

RETURN = r"""
cubins:
  description: By architecture (C(sm_61), C(sm_90a)) how often the server has code for it
  type: dict
  returned: success
devices: {description: What the server listed, type: list, elements: dict, returned: success}
problems: {description: One sentence for each problem, type: list, elements: str, returned: failure}
"""

from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "server": {"type": "path", "required": True},
            "flags": {"type": "dict", "required": True},
            "cards": {"type": "list", "elements": "dict", "default": []},
            "architectures": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    from checker import fatbin, program, release

    server = module.params["server"]
    cards = [release.ExpectedCard(**card) for card in module.params["cards"]]
    problems: list[str] = []
    try:
        problems += release.flag_problems(module.params["flags"], release.help_text(server))
        cubins = fatbin.read_cubins(Path(server))
        problems += release.code_problems(cards, module.params["architectures"], cubins)
        devices = release.list_devices(server, [card.uuid for card in cards])
        if cards:
            problems += release.order_problems(cards, devices)
        # Two cards of one name look alike in any order.
        for card in cards if len(cards) > 1 else []:
            problems += release.order_problems([card], release.list_devices(server, [card.uuid]))
    except (fatbin.FatbinError, program.ProgramError) as error:
        module.fail_json(msg="\n".join([*problems, str(error)]), problems=[*problems, str(error)])
    if problems:
        module.fail_json(msg="\n".join(problems), problems=problems)
    module.exit_json(
        changed=False,
        cubins={str(cubin): count for cubin, count in cubins.items()},
        devices=[asdict(device) for device in devices],
    )


if __name__ == "__main__":
    main()
