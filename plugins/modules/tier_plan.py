#!/usr/bin/python
"""Plan the tiers of a host on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tier_plan
short_description: Plan every tier of a host
description:
  - Turns the inventory's words, the catalogue and the host profile into one tier spec for each tier.
  - Fails with every reason, and its arithmetic, when a tier does not fit or tiers do not fit together.
  - Runs on the controller, with the Python that holds the package C(checker).
options:
  host: {description: Name of the host in the inventory, type: str, required: true}
  gpus: {description: The cards of the host, type: list, elements: dict, required: true}
  tiers: {description: The tiers of the host, type: list, elements: dict, required: true}
  models: {description: Catalogue of models, type: dict, required: true}
  engines: {description: Engine table, type: dict, required: true}
  engine: {description: Name of the engine of every tier that names none, type: str, required: true}
  backend: {description: Back end of the release, type: str, required: true}
  releases: {description: 'Folder of the release on the host, by engine', type: dict, required: true}
  models_directory: {description: Folder of the models on the host, type: str, required: true}
  keys_directory: {description: Folder of the tiers' API keys on the host, type: str, required: true}
  profile: {description: What gpu_facts read on the host; empty when there is no host to ask, type: dict, default: {}}
  ram: {description: What the inventory says of the host's memory, type: dict, default: {}}
  replan:
    description: Choose every placement anew, where else one that is proven on the host is kept while it fits.
    type: bool
    default: false
  as_served:
    description:
      - Plan each tier with what it was proven with on the host, as that lies on the cards, whatever the inventory's
        candidates and decision say. One that never was proven is left out.
    type: bool
    default: false
  decision:
    description: The inventory's decision (C(llama_tiers_decision)); a tier in it has the chosen candidate and no other.
    type: dict
    default: {}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Plan the tiers
  tier_plan:
    host: "{{ inventory_hostname }}"
    gpus: "{{ gpus }}"
    tiers: "{{ tiers }}"
    models: "{{ models }}"
    engines: "{{ engines }}"
    engine: "0c1e57098"
    backend: cuda
    releases: {0c1e57098: /opt/llama-tiers/current}
    models_directory: /var/lib/llama-tiers/models
    keys_directory: /etc/llama-tiers/keys
  delegate_to: localhost
"""

RETURN = r"""
specs: {description: One tier spec document (schema llama-tiers/tier/1) for each tier, type: list, returned: success}
models: {description: Names of the models that the tiers serve, type: list, returned: success}
passed_over: {description: One sentence for each candidate that does not fit, type: list, returned: success}
remarks: {description: What whoever reads the plan should know of its figures, type: list, returned: success}
figures:
  description: Of each card on which tiers lie, what is taken besides them, and whether it is measured or a prior
  type: list
  returned: success
summary: {description: One readable line for each tier, type: list, returned: success}
room_mib:
  description: MiB that tiers may hold of each card whose memory is known, by UUID
  type: dict
  returned: success
ram_room_mib:
  description: MiB that tiers may hold of the host's memory, none where that is not known
  type: int
  returned: success
kept:
  description: Names of the tiers that keep a proven placement where another would be chosen now
  type: list
  returned: success
left_out:
  description: Names of the tiers without a spec, which O(as_served) leaves out for they never were proven
  type: list
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "gpus": {"type": "list", "elements": "dict", "required": True},
            "tiers": {"type": "list", "elements": "dict", "required": True},
            "models": {"type": "dict", "required": True},
            "engines": {"type": "dict", "required": True},
            "engine": {"type": "str", "required": True},
            "backend": {"type": "str", "required": True},
            "releases": {"type": "dict", "required": True},
            "models_directory": {"type": "str", "required": True},
            "keys_directory": {"type": "str", "required": True, "no_log": False},
            "profile": {"type": "dict", "default": {}},
            "ram": {"type": "dict", "default": {}},
            "replan": {"type": "bool", "default": False},
            "as_served": {"type": "bool", "default": False},
            "decision": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        from checker import site_plan
        from checker.catalogue import InventoryError
    except ImportError as error:
        module.fail_json(msg=f"the controller's Python has no checker ({error}); run `make setup`")
    args = module.params
    try:
        planned = site_plan.for_site(
            args["gpus"],
            args["tiers"],
            args["models"],
            args["engines"],
            args["engine"],
            args["backend"],
            site_plan.Places(releases=args["releases"], models=args["models_directory"], keys=args["keys_directory"]),
            args["profile"],
            args["ram"],
            replan=args["replan"],
            as_served=args["as_served"],
            decided=args["decision"],
            host_name=args["host"],
        )
    except InventoryError as error:
        module.fail_json(msg=str(error), problems=error.problems)
    module.exit_json(
        changed=False,
        specs=[spec.to_json() for spec in planned.specs],
        models=list(dict.fromkeys(spec.model.name for spec in planned.specs)),
        summary=list(planned.summary),
        passed_over=list(planned.passed_over),
        remarks=list(planned.remarks),
        kept=list(planned.kept),
        room_mib=planned.room_mib,
        ram_room_mib=planned.ram_room_mib,
        figures=list(planned.figures),
        left_out=list(planned.left_out),
    )


if __name__ == "__main__":
    main()
