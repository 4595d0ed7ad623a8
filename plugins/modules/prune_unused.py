#!/usr/bin/python
"""Remove the models, or the releases, that nothing refers to."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prune_unused
short_description: Find, and remove, the models or releases of a host that nothing refers to
description:
  - A folder is kept while the inventory needs it, a link beside C(directory) points at it, a tier is to run with it, or
    the tiers were proven with it, now or before the last change of models, or of releases.
  - Nothing is removed while a tier spec is damaged, since it may need anything.
  - Remembers what the tiers were proven with, which is no change.
options:
  directory: {description: Folder of the models or releases, type: path, required: true}
  ours:
    description: Regular expression that a folder's name has to match as a whole; what is named otherwise stays.
    type: str
    required: true
  referred: {description: Names of the folders that the inventory needs, type: list, elements: str, required: true}
  memory: {description: File on the host that remembers what is and was served, type: path, required: true}
  newest:
    description: How many folders stay unasked, those included that are referred to; all of them without it.
    type: int
  remove: {description: Whether to remove all that nothing refers to, type: bool, required: true}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Remove the models that nothing refers to
  prune_unused:
    directory: /var/lib/llama-tiers/models
    ours: "[0-9a-f]{12}"
    referred: [0123456789ab]
    memory: /var/lib/llama-tiers/served.json
    remove: true
"""

RETURN = r"""
unused:
  description: One sentence for each folder that nothing refers to, or why that is not known.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "ours": {"type": "str", "required": True},
            "referred": {"type": "list", "elements": "str", "required": True},
            "memory": {"type": "path", "required": True},
            "newest": {"type": "int"},
            "remove": {"type": "bool", "required": True},
        },
        supports_check_mode=True,
    )
    from checker import proven, prune, tier

    args = module.params
    directory, memory = Path(args["directory"]), Path(args["memory"])
    try:
        before = prune.read(memory)
        served = prune.after(before, prune.needed(proven.DIRECTORY.glob("*/spec.json")))
        to_run = prune.needed([*tier.DIRECTORY.glob("*.json"), *proven.DIRECTORY.glob("*/accepted*/spec.json")])
    except prune.PruneError as error:
        module.exit_json(changed=False, unused=[f"{directory}: nothing is removed, for {error}"])
    found = prune.folders(directory, args["ours"])
    # Models and releases have no names in common.
    proven_with = (name for each in served.values() for name in (*each.now, *each.before))
    referred = {*args["referred"], *prune.linked(directory), *proven_with}.union(*to_run.values())
    unused = prune.unused(found, referred)
    stay = len(unused) if args["newest"] is None else max(args["newest"] - (len(found) - len(unused)), 0)
    gone = unused if args["remove"] else unused[stay:]
    if not module.check_mode:
        try:
            if served != before:
                prune.write(memory, served)
            prune.remove(gone)
        except OSError as error:
            module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(
        changed=bool(gone),
        unused=[
            f"{each.path} ({each.mib:,} MiB): "
            + ("removed" if each in gone else "nothing refers to it; -e llama_tiers_prune=true removes it")
            for each in unused
        ],
    )


if __name__ == "__main__":
    main()
