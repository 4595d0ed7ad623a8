#!/usr/bin/python
"""Rank models by quality on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: quality_ranks
short_description: Rank the models that are served by what is published of them
description:
  - Ranks as a decision does (docs/decisions.md, "Quality"), so that quality means the same to clients.
  - Runs on the controller, with the Python that holds the package C(checker).
options:
  models: {description: Catalogue of models, type: dict, default: {}}
  served: {description: The model of each tier by name, type: list, elements: str, required: true}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Rank the models
  quality_ranks:
    models: "{{ models }}"
    served: [deepseek-r1-distill-qwen-14b-q4_k_m]
  delegate_to: localhost
"""

RETURN = r"""
ranks:
  description: Rank by name of the model, 1 the best; null of a model that has no published figures in the catalogue.
  type: dict
  returned: success
problems: {description: One sentence for each problem, type: list, elements: str, returned: failure}
"""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "dict", "default": {}},
            "served": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        from checker.catalogue import parse_inventory
        from checker.decision import quality_ranks
    except ImportError as error:
        module.fail_json(msg=f"the controller's Python has no checker ({error}); run `make setup`")
    served = module.params["served"]
    # What is wrong with others is nothing to a host that does not serve them.
    own = {name: entry for name, entry in module.params["models"].items() if name in served}
    _, _, models, problems = parse_inventory([], [], own)
    if problems:
        module.fail_json(msg="the catalogue cannot be used:\n" + "\n".join(problems), problems=problems)
    module.exit_json(changed=False, ranks=quality_ranks(served, models))


if __name__ == "__main__":
    main()
