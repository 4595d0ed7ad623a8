#!/usr/bin/python
"""Hold the plan of tiers against the engine's own estimate."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tier_estimate
short_description: Hold the plan of tiers against the engine's own estimate
description:
  - Asks the release's C(llama-fit-params) about the real file on the real cards, for each tier that is new or changed.
  - Fails when it expects another size than the plan; both are named.
  - What was proven and cannot be read is not proven; a warning says so.
  - Leaves out a tier whose release or model is not on the host yet, as in check mode before the first run.
options:
  specs:
    description: Tier spec documents.
    type: list
    elements: dict
    required: true
  proven_directory: {description: Folder that holds what was proven of each tier, type: path, required: true}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Hold the plan against the engine's own estimate
  tier_estimate:
    specs: "{{ specs }}"
    proven_directory: /var/lib/llama-tiers/proven
"""

RETURN = r"""
asked: {description: Tiers for which the engine gave an estimate, type: list, elements: str, returned: success}
problems: {description: One sentence for each problem, type: list, elements: str, returned: failure}
"""

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def is_proven(document, directory, warn):
    """Whether a tier was proven with just this spec; what is damaged proves nothing, and is said to `warn`."""
    path = directory / document["name"] / "spec.json"
    try:
        return path.exists() and json.loads(path.read_text(encoding="utf-8")) == document
    except (OSError, ValueError) as error:
        warn(f"{document['name']}: {path} is damaged ({error}), so the tier counts as not proven")
        return False


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "specs": {"type": "list", "elements": "dict", "required": True},
            "proven_directory": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    from checker import engine_estimate, tier

    asked, problems = [], []
    for document in module.params["specs"]:
        spec = tier.from_json(document)
        here = Path(spec.argv[0]).exists() and Path(spec.model.file).exists()
        if not here or is_proven(document, Path(module.params["proven_directory"]), module.warn):
            continue
        try:
            told = engine_estimate.ask(spec)
        except engine_estimate.EstimateError as error:
            problems.append(str(error))
            continue
        if told is not None:
            asked.append(spec.name)
            problems += engine_estimate.disagreements(spec, told)
    if problems:
        module.fail_json(msg="\n".join(problems), problems=problems)
    module.exit_json(changed=False, asked=asked)


if __name__ == "__main__":
    main()
