#!/usr/bin/python
"""Write several text files in one task: all of them, or none that is not valid."""

from __future__ import annotations

DOCUMENTATION = r"""
module: write_files
short_description: Write several text files in one task
description:
  - Writes what differs, each file complete or not at all, and makes the folders that are missing.
  - With O(validate) nothing is written unless all files are valid together. It is run when a file differs.
options:
  files:
    description: The files, with their text. A file that is there keeps its owner.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Where the file is to be, type: path, required: true}
      content: {description: Its text, type: str, required: true}
  mode: {description: Mode of the files, type: str, default: '0644'}
  validate:
    description:
      - Command that fails when the files are not valid together; C(%s) is a folder that holds all of them under their
        own names. Not run in check mode.
    type: list
    elements: str
    default: []
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Write two units that name each other
  write_files:
    files:
      - {path: /etc/systemd/system/one.service, content: "{{ lookup('template', 'one.service.j2') }}"}
      - {path: /etc/systemd/system/one.socket, content: "{{ lookup('template', 'one.socket.j2') }}"}
    validate: [/bin/sh, -c, systemd-analyze verify %s/one.service %s/one.socket]
"""

RETURN = r"""
written: {description: Files that differed, type: list, elements: str, returned: success}
"""

import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def read(path):
    """Return the text of a file, None when there is none."""
    return path.read_text(encoding="utf-8") if path.exists() else None


def is_valid(module, command, files):
    """Run the command with a folder that holds the files; return what it said when it failed."""
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as folder:
        for path, content in files.items():
            (Path(folder) / path.name).write_text(content, encoding="utf-8")
        code, out, err = module.run_command([word.replace("%s", folder) for word in command])
        return code == 0, (err or out).strip().replace(f"{folder}/", "")


def write(module, path, content):
    """Write a file, complete or not at all."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=module.tmpdir, delete=False) as file:
        file.write(content)
    module.atomic_move(file.name, str(path))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                },
            },
            "mode": {"type": "str", "default": "0644"},
            "validate": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    args = module.params
    files = {Path(file["path"]): file["content"] for file in args["files"]}
    try:
        before = {path: read(path) for path in files}
        changed = [path for path, content in files.items() if before[path] != content]
        if changed and args["validate"] and not module.check_mode:
            valid, said = is_valid(module, args["validate"], files)
            if not valid:
                names = ", ".join(path.name for path in changed)
                module.fail_json(msg=f"not valid, so nothing is written ({names}): {said}")
        modes = []
        for path, content in files.items():
            if path in changed and not module.check_mode:
                write(module, path, content)
            if path.exists() and module.set_mode_if_different(str(path), args["mode"], False):
                modes.append(path)
    except (OSError, UnicodeDecodeError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(changed or modes),
        written=[str(path) for path in changed],
        diff=[
            {"before_header": str(path), "after_header": str(path), "before": before[path] or "", "after": files[path]}
            for path in changed
        ],
    )


if __name__ == "__main__":
    main()
