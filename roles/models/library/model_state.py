#!/usr/bin/python
"""Find out which model files are on the host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_state
short_description: Find out which model files are not on the host yet
description:
  - Reads only what was remembered when a file was verified, and the file's size and time; never the file.
options:
  files:
    description: Files as dicts with at least C(dest) and C(sha256).
    type: list
    elements: dict
    required: true
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Find out which files are there
  model_state:
    files:
      - {dest: /var/lib/llama-tiers/models/0123456789ab/model.gguf, sha256: "{{ sha256 }}"}
"""

RETURN = r"""
missing: {description: Those of the files that have to be fetched, type: list, returned: always}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"files": {"type": "list", "elements": "dict", "required": True}}, supports_check_mode=True
    )
    from checker import download

    missing = [
        file for file in module.params["files"] if not download.already_there(Path(file["dest"]), file["sha256"])
    ]
    module.exit_json(changed=False, missing=missing)


if __name__ == "__main__":
    main()
