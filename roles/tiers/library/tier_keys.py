#!/usr/bin/python
"""Have one API key file for each tier."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tier_keys
short_description: Have one API key file for each tier
description:
  - Writes the given keys, makes a random one for every tier that has none yet, and sets owner and mode.
  - The file of a tier begins with its own key; those of tiers that it is the fallback of follow, for their clients,
    also of tiers that are O(left_out), whose own files stay as they are.
  - A tier that has another key goes on with it. The new one waits beside it, with the ending C(.next), until the server
    that knows the old one has stopped (C(tier_activate)).
options:
  tiers: {description: Names of the tiers, type: list, elements: str, required: true}
  left_out: {description: Tiers of the inventory that are left as they are, type: list, elements: str, default: []}
  keys: {description: Keys by tier name, type: dict, default: {}}
  fallbacks: {description: The fallback of a tier, by the tier's name, type: dict, default: {}}
  rotate: {description: Tiers that get a new random key, type: list, elements: str, default: []}
  directory: {description: Folder of the key files, type: path, required: true}
  groups: {description: The group that may read the key, by tier name, type: dict, required: true}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Write the API keys
  tier_keys:
    tiers: [fast, deep]
    directory: /etc/llama-tiers/keys
    groups: {fast: llama-tier-fast, deep: llama-tier-deep}
"""

RETURN = r"""
written: {description: Tiers whose key file was made or changed, type: list, returned: always}
"""

import secrets
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def wanted_key(name, path, keys, rotate):
    """Return the key that is given, else the one that the tier has, else a random one."""
    if name in keys:
        return keys[name]
    return (None if name in rotate else current_key(path)) or secrets.token_urlsafe(32)


def waiting(path):
    """Return where the next key of a tier waits for its turn."""
    return path.with_suffix(".next")


def own_key(path):
    """Return the first key of a file, None when there is none."""
    found = path.read_text().split() if path.exists() else []
    return found[0] if found else None


def current_key(path):
    """Return the key that a tier has, or gets when its turn comes; None when it has none yet."""
    return own_key(waiting(path)) or own_key(path)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "tiers": {"type": "list", "elements": "str", "required": True},
            "left_out": {"type": "list", "elements": "str", "default": []},
            "keys": {"type": "dict", "default": {}, "no_log": True},
            "fallbacks": {"type": "dict", "default": {}},
            "rotate": {"type": "list", "elements": "str", "default": []},
            "directory": {"type": "path", "required": True},
            "groups": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    # A line's end at the end of a key comes with many ways to encrypt one.
    keys = {name: str(key).strip() for name, key in module.params["keys"].items()}
    spaced = [name for name, key in keys.items() if key.split() != [key] and key]
    if spaced:
        module.fail_json(msg=f"tiers_api_keys: the key of {', '.join(spaced)} has white space in it")
    short = [name for name, key in keys.items() if len(key) < 16]
    if short:
        module.fail_json(msg=f"tiers_api_keys: the key of {', '.join(short)} is shorter than 16 characters")
    # llama-server would take the line for a comment, and ask for no key at all.
    comments = [name for name, key in keys.items() if key.startswith("#")]
    if comments:
        module.fail_json(msg=f"tiers_api_keys: the key of {', '.join(comments)} begins with #: take another one")
    unknown = sorted(set(keys) - set(module.params["tiers"]) - set(module.params["left_out"]))
    if unknown:
        module.fail_json(msg=f"tiers_api_keys names {', '.join(unknown)}, but the tiers are {module.params['tiers']}")
    strange = sorted(set(module.params["rotate"]) - set(module.params["tiers"]))
    if strange:
        module.fail_json(
            msg=f"tiers_rotate_keys names {', '.join(strange)}, but the tiers are {module.params['tiers']}"
        )
    given = sorted(set(module.params["rotate"]) & set(keys))
    if given:
        module.fail_json(msg=f"tiers_rotate_keys names {', '.join(given)}, whose keys are given: change them there")
    directory = Path(module.params["directory"])
    written = []
    own = {name: wanted_key(name, directory / name, keys, module.params["rotate"]) for name in module.params["tiers"]}
    own |= {name: key for name in module.params["left_out"] if (key := current_key(directory / name))}
    for name in module.params["tiers"]:
        path = directory / name
        stands_in_for = [other for other, fallback in module.params["fallbacks"].items() if fallback == name]
        wanted = "".join(own[each] + "\n" for each in (name, *stands_in_for) if each in own)
        # With its own key a server is asked whether it is busy, before it is stopped.
        waits = own_key(path) not in (None, own[name])
        place = waiting(path) if waits else path
        changed = not place.exists() or place.read_text() != wanted or (waiting(path).exists() and not waits)
        if not module.check_mode:
            if not waits:
                waiting(path).unlink(missing_ok=True)
            if changed:
                temporary = path.with_suffix(".new")
                temporary.touch(mode=0o600)
                temporary.write_text(wanted)
                temporary.replace(place)
            for each in {path, place}:
                changed = module.set_owner_if_different(str(each), "root", changed)
                changed = module.set_group_if_different(str(each), module.params["groups"][name], changed)
                changed = module.set_mode_if_different(str(each), 0o640, changed)
        if changed:
            written.append(name)
    module.exit_json(changed=bool(written), written=written)


if __name__ == "__main__":
    main()
