#!/usr/bin/python
"""Fetch one file over HTTP onto the host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fetch_file
short_description: Fetch one file over HTTP, resumed by range and published only when its sha256 is right
description:
  - Goes on from the C(.part) file that an earlier try left, and computes the sha256 while the file streams.
  - A file of the wrong sha256, size or kind is never published. A file that was verified before is not read again.
options:
  url: {description: Where the file is, type: str, required: true}
  dest: {description: Where the file is to be, type: path, required: true}
  sha256: {description: The sha256 of the file in hexadecimal digits, type: str, required: true}
  bytes: {description: The size of the file, type: int}
  magic: {description: 'The first characters of every file of this kind, such as GGUF', type: str, default: ''}
  progress: {description: File whose last line says how far it is, type: path, required: true}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Fetch a model
  fetch_file:
    url: http://mirror/models/model.gguf
    dest: /var/lib/llama-tiers/models/0123456789ab/model.gguf
    sha256: "{{ sha256 }}"
    bytes: 253113024
    magic: GGUF
    progress: /run/llama-tiers/progress/model
"""

RETURN = r"""
resumed_from: {description: Bytes that were there already, type: int, returned: when it was fetched}
transferred_bytes: {description: Bytes that were transferred, type: int, returned: when it was fetched}
seconds: {description: How long it took, type: float, returned: when it was fetched}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
            "sha256": {"type": "str", "required": True},
            "bytes": {"type": "int"},
            "magic": {"type": "str", "default": ""},
            "progress": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    from checker import download

    args = module.params
    wanted = download.Wanted(args["url"], Path(args["dest"]), args["sha256"], args["bytes"], args["magic"].encode())
    if download.already_there(wanted.dest, wanted.sha256):
        module.exit_json(changed=False)
    if module.check_mode:
        module.exit_json(changed=True, msg=f"would fetch {wanted.url} to {wanted.dest}")
    progress = Path(args["progress"])
    progress.parent.mkdir(parents=True, exist_ok=True)

    def report(line: str) -> None:
        progress.write_text(line + "\n", encoding="utf-8")

    try:
        fetched = download.fetch(wanted, report)
    except download.DownloadError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{wanted.dest}: {error}; what came so far is kept in {wanted.part}")
    module.exit_json(
        changed=True,
        resumed_from=fetched.resumed_from,
        transferred_bytes=fetched.transferred_bytes,
        seconds=round(fetched.seconds, 1),
    )


if __name__ == "__main__":
    main()
