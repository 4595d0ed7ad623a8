#!/usr/bin/python
"""Bring the tiers of a host to what their files say."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tier_activate
short_description: Start what is new or changed, one tier at a time, and roll back what fails
description:
  - Starts tiers in an order in which the fewest have to stop before their turn. One stops early only where the memory
    of a card that it holds is needed by another tier to start.
  - Restarts a tier only when its server's part of the unit, its spec or its key differ from what was last proven ready,
    or when it is pinned and not active. A new key takes its place when the server has stopped. One on demand is started
    to be proven; pinned tiers come back after it.
  - A tier that does not become ready gets back the units and spec that served before, and the module fails. One that
    was never proven and has a fallback is given up instead, with a warning.
  - Tiers of the host that are neither named nor spared are stopped and removed, with their keys.
options:
  tiers: {description: Names of the tiers, type: list, elements: str, required: true}
  room_mib:
    description: MiB that tiers may hold of each card by the plan, by UUID; another card is not reckoned with.
    type: dict
    required: true
  progress: {description: File whose last line says how far it is, type: path, required: true}
  retry:
    description: Try tiers again that were given up, although nothing has changed.
    type: bool
    default: false
  spared:
    description: Names of tiers that are left as they are, neither started nor removed.
    type: list
    elements: str
    default: []
attributes:
  check_mode: {support: none}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Activate what is new or changed
  tier_activate:
    tiers: [fast, deep]
    room_mib: {GPU-3060a11a-0000-4000-8000-000000000001: 7700}
    progress: /run/llama-tiers/progress/tiers
"""

RETURN = r"""
activated: {description: Tiers that were started or restarted, in order, type: list, returned: success}
retired: {description: Tiers that were stopped and removed, type: list, returned: success}
moved: {description: Tiers of which only what is around the server changed, type: list, returned: success}
degraded: {description: Why tiers were given up for their fallback, by tier, type: dict, returned: success}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "tiers": {"type": "list", "elements": "str", "required": True},
            "room_mib": {"type": "dict", "required": True},
            "progress": {"type": "path", "required": True},
            "retry": {"type": "bool", "default": False},
            "spared": {"type": "list", "elements": "str", "default": []},
        },
    )
    from checker import activation, systemd, tier

    progress = Path(module.params["progress"])
    progress.parent.mkdir(parents=True, exist_ok=True)

    def report(line: str) -> None:
        progress.write_text(line + "\n")

    try:
        outcome = activation.activate(
            module.params["tiers"],
            module.params["room_mib"],
            report,
            retry=module.params["retry"],
            spared=module.params["spared"],
        )
    except (activation.ActivationError, systemd.SystemdError, tier.TierSpecError) as error:
        module.fail_json(msg=str(error))
    for name, reason in outcome.degraded.items():
        module.warn(f"tier {name} does not start, its fallback answers in its place: {reason}")
    module.exit_json(
        changed=bool(outcome.activated or outcome.retired or outcome.moved),
        activated=list(outcome.activated),
        retired=list(outcome.retired),
        moved=list(outcome.moved),
        degraded=dict(outcome.degraded),
    )


if __name__ == "__main__":
    main()
