#!/usr/bin/python
"""Choose the CUDA toolkit, the host compiler and the architectures of a build."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_toolkit
short_description: Choose CUDA toolkit, host compiler and architectures for the cards of a host
description:
  - Finds every nvcc and g++ of the host and takes the newest that serve every card; never the newest as such.
  - Fails when none does, naming each toolkit with the reason, and what would do; and when the architectures that were
    given leave a card without machine code.
  - Runs on the host with the interpreter of the checker's environment. Installs nothing.
options:
  method:
    description: Which toolkits may be taken.
    type: str
    choices: [detect, debian, nvidia_repository, path]
    required: true
  path: {description: The toolkit's folder for the way C(path), type: str, default: ""}
  cards:
    description: The cards that are to be served, each with C(name) and C(compute_capability).
    type: list
    elements: dict
    required: true
  architectures:
    description: What to compile for, as CMake's CUDA_ARCHITECTURES takes it; empty for the cards' own.
    type: list
    elements: str
    default: []
  driver: {description: Version of the driver; empty when there is none, type: str, default: ""}
  may_install:
    description: Whether the toolkit of the method can still be installed, so that its absence is no failure yet.
    type: bool
    default: false
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Choose the toolkit
  cuda_toolkit:
    method: detect
    cards:
      - {name: NVIDIA GeForce GTX 1060 3GB, compute_capability: "6.1"}
  vars:
    ansible_python_interpreter: /opt/llama-tiers/checker/bin/python
"""

RETURN = r"""
nvcc: {description: The compiler; empty when it is still to be installed, type: str, returned: success}
version: {description: Version of the toolkit that is taken or would be installed, type: str, returned: success}
root: {description: Folder of the toolkit; empty when it is still to be installed, type: str, returned: success}
libraries:
  description: Folder of the toolkit's libraries when the system does not look there by itself; else empty.
  type: str
  returned: success
compiler: {description: The g++ for it; empty when none of the host's will do, type: str, returned: success}
newest_gcc: {description: Newest g++ that the toolkit takes, type: int, returned: success}
repository:
  description: What NVIDIA calls the distribution; empty when there is no pinned toolkit for it
  type: str
  returned: success
architectures: {description: What to compile for, type: list, elements: str, returned: success}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "method": {"type": "str", "choices": ["detect", "debian", "nvidia_repository", "path"], "required": True},
            "path": {"type": "str", "default": ""},
            "cards": {"type": "list", "elements": "dict", "required": True},
            "architectures": {"type": "list", "elements": "str", "default": []},
            "driver": {"type": "str", "default": ""},
            "may_install": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    from checker import cuda, cuda_host, toolkit

    given = module.params
    cards = [cuda.Card(card["name"], cuda.version(card["compute_capability"])) for card in given["cards"]]
    architectures = given["architectures"] or toolkit.architectures(cards)
    if not architectures:
        module.fail_json(
            msg="nothing to compile for: no card is known that CUDA is to serve; run the role gpu_host before, or give "
            "llama_cpp_cuda_architectures, such as [61-real, 86-real]"
        )
    # Here, and not by the proof of what was compiled for an hour.
    uncompiled = toolkit.uncompiled_cards(cards, architectures)
    if uncompiled:
        module.fail_json(msg="\n".join(uncompiled))
    wish = toolkit.Wish(given["method"], given["path"])
    host = cuda_host.read(given["path"])
    chosen = toolkit.choose_toolkit(wish, cards, given["driver"] or None, host)
    planned = toolkit.planned_toolkit(wish, host.distribution)
    if isinstance(chosen, str):
        if not given["may_install"] or not isinstance(planned, tuple):
            module.fail_json(msg=planned if isinstance(planned, str) else chosen)
        version, nvcc, root, libraries = planned[0], "", "", ""
    else:
        version, nvcc, root = cuda.version(chosen.version), chosen.nvcc, str(Path(chosen.nvcc).parents[1])
        libraries = "" if chosen.packaged else f"{root}/lib64"
    compiler = toolkit.choose_compiler(version, host.compilers)
    module.exit_json(
        changed=False,
        nvcc=nvcc,
        version=str(version),
        root=root,
        libraries=libraries,
        compiler=compiler.path if compiler else "",
        newest_gcc=toolkit.newest_gcc(version),
        architectures=architectures,
        repository=toolkit.REPOSITORIES.get(host.distribution, ""),
    )


if __name__ == "__main__":
    main()
