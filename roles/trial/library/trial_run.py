#!/usr/bin/python
"""Try candidates on this host, in a unit of its own."""

from __future__ import annotations

DOCUMENTATION = r"""
module: trial_run
short_description: Try candidates on this host, and return the records of all that were tried
description:
  - Has the unit llama-tiers-trial.service try each candidate, and waits until what served before serves again.
  - Without candidates only the records are returned, and what an earlier trial had stopped is started. It fails when
    somebody else goes on trying candidates, or starting and stopping tiers, for longer than a minute.
  - A candidate that fails is no failure of the module; its record says why. What served before and does not start again
    is one.
options:
  host: {description: Name of the host in the inventory, type: str, required: true}
  candidates:
    description: Candidates as trial_plan returns them, with C(unit), the text of the unit, where they have a spec.
    type: list
    elements: dict
    default: []
  depth: {description: How much is measured of each, type: str, choices: [quick, whole], default: whole}
  limit_s: {description: Seconds that one candidate may take once it is started, type: int, default: 1800}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Read what was tried
  trial_run:
    host: tower
  register: tried
"""

RETURN = r"""
records:
  description: The records of all trials of this host (docs/schemas/trial.schema.json).
  type: list
  elements: dict
  returned: always
"""

import json

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "candidates": {"type": "list", "elements": "dict", "default": []},
            "depth": {"type": "str", "choices": ["quick", "whole"], "default": "whole"},
            "limit_s": {"type": "int", "default": 1800},
        },
        supports_check_mode=True,
    )
    from checker import activation, systemd, trial_run

    candidates = module.params["candidates"]
    # Nobody is told what a job without candidates waits for: it has no progress that is shown.
    patience_s = None if candidates else trial_run.PATIENCE_S
    try:
        if not module.check_mode:
            trial_run.wait(patience_s)
            # What an earlier trial left stopped, when neither systemd nor a boot has seen to it.
            trial_run.restore(patience_s)
        if candidates and not module.check_mode:
            job = {key: module.params[key] for key in ("host", "candidates", "depth", "limit_s")}
            trial_run.DIRECTORY.mkdir(parents=True, exist_ok=True)
            (trial_run.DIRECTORY / "job.json").write_text(json.dumps(job), encoding="utf-8")
            trial_run.LEASE.parent.mkdir(parents=True, exist_ok=True)
            trial_run.LEASE.touch()
            systemd.reset_failed(trial_run.UNIT)
            systemd.restart(trial_run.UNIT)
            state = trial_run.wait()
            if state.active_state == "failed":
                said = " | ".join(systemd.journal(trial_run.UNIT, state.invocation_id)[-3:])
                module.fail_json(msg=f"the trial was cut off: {said}", records=trial_run.kept())
    except (activation.BusyError, systemd.SystemdError, OSError) as error:
        module.fail_json(msg=str(error), records=trial_run.kept())
    module.exit_json(changed=bool(candidates), records=trial_run.kept())


if __name__ == "__main__":
    main()
