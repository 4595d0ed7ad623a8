#!/usr/bin/python
"""Screen the candidates of a host on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: trial_plan
short_description: Say which candidates of a host are to be tried, and as what
description:
  - Plans every candidate as if it were the only tier of the host; one that has no room gets the arithmetic as a reason.
  - Fails with every problem of the inventory.
  - Runs on the controller, with the Python that holds the package C(checker).
options:
  gpus: {description: The cards of the host, type: list, elements: dict, required: true}
  tiers: {description: The tiers of the host, type: list, elements: dict, required: true}
  models: {description: Catalogue of models, type: dict, required: true}
  engines: {description: Engine table, type: dict, required: true}
  engine: {description: Name of the engine of every tier that names none, type: str, required: true}
  backend: {description: Back end of the release, type: str, required: true}
  releases: {description: 'Folder of the release on the host, by engine', type: dict, required: true}
  models_directory: {description: Folder of the models on the host, type: str, required: true}
  keys_directory: {description: Folder of the tiers' API keys on the host, type: str, required: true}
  profile: {description: What gpu_facts read on the host, type: dict, required: true}
  ram: {description: What the inventory says of the host's memory, type: dict, default: {}}
  only: {description: The tier whose candidates are tried; those of all when empty, type: str, default: ""}
  known:
    description: The records of what was tried before (schema llama-tiers/trial/1), which need not be tried again
    type: list
    elements: dict
    default: []
  limit_s: {description: Seconds that a candidate may take to be measured, type: float, required: true}
  depth: {description: How deeply it is measured, type: str, required: true}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Screen the candidates
  trial_plan:
    gpus: "{{ gpus }}"
    tiers: "{{ tiers }}"
    models: "{{ models }}"
    engines: "{{ engines }}"
    engine: "0c1e57098"
    backend: cuda
    releases: {0c1e57098: /opt/llama-tiers/releases/one}
    models_directory: /var/lib/llama-tiers/models
    keys_directory: /etc/llama-tiers/keys
    profile: "{{ gpu_host_profile }}"
    limit_s: 1800
    depth: whole
  delegate_to: localhost
"""

RETURN = r"""
candidates:
  description:
    - Every candidate in the inventory's order, with C(spec) (schema llama-tiers/tier/1) or C(reason), and C(done) when
      it was tried before.
  type: list
  elements: dict
  returned: success
summary: {description: One readable line for each candidate, type: list, elements: str, returned: success}
problems: {description: One sentence for each problem, type: list, elements: str, returned: failure}
"""

from ansible.module_utils.basic import AnsibleModule


def describe(candidate):
    """Say in one line what becomes of a candidate."""
    if candidate.reason is not None:
        return f"{candidate.tier}: {candidate.label}: has no room: {candidate.reason}"
    return f"{candidate.tier}: {candidate.label}: {'was tried already' if candidate.done else 'is tried'}"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "gpus": {"type": "list", "elements": "dict", "required": True},
            "tiers": {"type": "list", "elements": "dict", "required": True},
            "models": {"type": "dict", "required": True},
            "engines": {"type": "dict", "required": True},
            "engine": {"type": "str", "required": True},
            "backend": {"type": "str", "required": True},
            "releases": {"type": "dict", "required": True},
            "models_directory": {"type": "str", "required": True},
            "keys_directory": {"type": "str", "required": True, "no_log": False},
            "profile": {"type": "dict", "required": True},
            "ram": {"type": "dict", "default": {}},
            "only": {"type": "str", "default": ""},
            "known": {"type": "list", "elements": "dict", "default": []},
            "limit_s": {"type": "float", "required": True},
            "depth": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        from checker import site_plan, trial_plan
        from checker.catalogue import InventoryError
    except ImportError as error:
        module.fail_json(msg=f"the controller's Python has no checker ({error}); run `make setup`")
    args = module.params
    try:
        found = trial_plan.candidates(
            args["gpus"],
            args["tiers"],
            args["models"],
            args["engines"],
            args["engine"],
            args["backend"],
            site_plan.Places(releases=args["releases"], models=args["models_directory"], keys=args["keys_directory"]),
            args["profile"],
            args["ram"],
            args["only"] or None,
            args["known"],
            args["limit_s"],
            args["depth"],
        )
    except InventoryError as error:
        module.fail_json(msg=str(error), problems=error.problems)
    module.exit_json(
        changed=False,
        candidates=[candidate.to_json() for candidate in found],
        summary=[describe(candidate) for candidate in found],
    )


if __name__ == "__main__":
    main()
