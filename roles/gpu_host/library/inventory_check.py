#!/usr/bin/python
"""Check the inventory's words on the controller, without a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: inventory_check
short_description: Check gpus, tiers and catalogues of the inventory
description:
  - Fails with every problem at once, one on a line; each names the tier, the key, the value and the fix.
  - Runs on the controller with the Python that has the controller's requirements. Reads nothing from a host.
options:
  host: {description: Name of the host in the inventory, type: str, required: true}
  gpus: {description: The cards of the host, type: list, elements: dict, required: true}
  tiers: {description: The tiers of the host, type: list, elements: dict, required: true}
  models: {description: Catalogue of models, type: dict, required: true}
  engines: {description: Engine table, type: dict, required: true}
  engine: {description: Name of the engine of every tier that names none, type: str, required: true}
  backend: {description: Back end of the release, type: str, required: true}
  models_directory: {description: Folder of the models on the host, type: str, required: true}
  build_directory: {description: Folder on the host in which engines are built, type: str, required: true}
  releases_directory: {description: Folder on the host that holds what was built, type: str, required: true}
  build_free_mib: {description: 'MiB that the build of an engine needs', type: int, required: true}
  decision: {description: The inventory's decision of which candidate each tier serves, type: dict, default: {}}
  serves: {description: 'Whether the tiers are to be served, which needs their models', type: bool, default: true}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Check the inventory
  inventory_check:
    host: "{{ inventory_hostname }}"
    gpus: "{{ gpus }}"
    tiers: "{{ tiers }}"
    models: "{{ models }}"
    engines: "{{ engines }}"
    engine: "0c1e57098"
    backend: cuda
    models_directory: /var/lib/llama-tiers/models
    build_directory: /var/cache/llama-tiers/build
    releases_directory: /opt/llama-tiers/releases
    build_free_mib: 5376
  delegate_to: localhost
"""

RETURN = r"""
models: {description: Names of the models that the tiers would serve, type: list, elements: str, returned: success}
needs:
  description: The build of every engine and every file of the models that the tiers serve, as checker.preflight.Need.
  type: list
  elements: dict
  returned: success
problems: {description: One sentence for each problem, type: list, elements: str, returned: failure}
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule, missing_required_lib


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
            "models_directory": {"type": "str", "required": True},
            "build_directory": {"type": "str", "required": True},
            "releases_directory": {"type": "str", "required": True},
            "build_free_mib": {"type": "int", "required": True},
            "decision": {"type": "dict", "default": {}},
            "serves": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    try:
        from checker.catalogue import InventoryError, check_inventory
        from checker.preflight import build_needs, model_needs
        from checker.site_plan import served
    except ImportError as error:
        module.fail_json(msg=missing_required_lib(error.name or "checker"))
    given = module.params
    words = {name: given[name] for name in ("gpus", "tiers", "models", "engines", "engine", "backend")}
    problems = check_inventory(**words)
    if problems:
        module.fail_json(msg="the inventory cannot be used:\n" + "\n".join(problems), problems=problems)
    names = []
    try:
        if given["serves"]:
            names = served(given["gpus"], given["tiers"], given["models"], given["decision"], given["host"])
    except InventoryError as error:
        module.fail_json(msg=f"the inventory cannot be used:\n{error}", problems=error.problems)
    needs = [
        *build_needs(
            given["engine"],
            given["tiers"],
            given["backend"],
            given["build_directory"],
            given["releases_directory"],
            given["build_free_mib"],
        ),
        *model_needs(names, given["models"], given["models_directory"]),
    ]
    module.exit_json(changed=False, models=names, needs=[asdict(need) for need in needs])


if __name__ == "__main__":
    main()
