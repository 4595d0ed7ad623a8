#!/usr/bin/python
"""Remove the models that nothing refers to."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_prune
short_description: Find, and remove, the models of a host that nothing refers to
description:
  - A model is kept while the inventory names it, a tier serves it, or a tier served it before the last change.
  - Remembers what is served, which is no change.
options:
  directory: {description: Folder of the models on the host, type: path, required: true}
  referred:
    description: Files of the models that the inventory names, as dicts with at least C(dest).
    type: list
    elements: dict
    required: true
  memory: {description: File on the host that remembers what is and was served, type: path, required: true}
  remove: {description: Whether to remove what nothing refers to, type: bool, required: true}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Remove the models that nothing refers to
  model_prune:
    directory: /var/lib/llama-tiers/models
    referred:
      - {dest: /var/lib/llama-tiers/models/0123456789ab/model.gguf}
    memory: /var/lib/llama-tiers/served.json
    remove: true
"""

RETURN = r"""
unused:
  description: One sentence for each model that nothing refers to.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def folder_of(file, directory):
    """Return the name of the folder, of those of the models, that a file lies in."""
    try:
        return Path(file).relative_to(directory).parts[0]
    except ValueError:
        return ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "referred": {"type": "list", "elements": "dict", "required": True},
            "memory": {"type": "path", "required": True},
            "remove": {"type": "bool", "required": True},
        },
        supports_check_mode=True,
    )
    from checker import prune, tier

    directory, memory = Path(module.params["directory"]), Path(module.params["memory"])
    try:
        served = [folder_of(spec.model.file, directory) for spec in tier.load_all()]
    except tier.TierSpecError as error:
        module.fail_json(msg=str(error))
    remembered = prune.read(memory).after(served)
    referred = [folder_of(file["dest"], directory) for file in module.params["referred"]]
    found = prune.unused(directory, referred, remembered)
    removes = bool(module.params["remove"] and found)
    if not module.check_mode:
        try:
            prune.write(memory, remembered)
            if removes:
                prune.remove(found)
        except OSError as error:
            module.fail_json(msg=f"{error.filename}: {error.strerror}")
    word = "removed" if removes else "nothing refers to it; -e llama_tiers_prune=true removes it"
    module.exit_json(changed=removes, unused=[f"{each.path} ({each.mib:,} MiB): {word}" for each in found])


if __name__ == "__main__":
    main()
