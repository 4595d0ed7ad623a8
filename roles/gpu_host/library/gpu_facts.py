#!/usr/bin/python
"""Read what a host has: GPUs, driver, what CUDA depends on, memory, room on disk, tiers that were proven."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_facts
short_description: Read GPUs, driver, RAM, free disk and what is known of the tiers of a host
description:
  - Reads and does not judge. Where NVML cannot answer, RV(profile.problem) says why and how to mend it.
  - Runs on the host with the interpreter of the checker's environment.
options:
  needs:
    description:
      - What is to lie on the host, as checker.preflight.Need holds it. C(path) is the file or folder to be, which need
        not exist; C(done) is a glob that matches a file once the thing is there, C(left) one that matches what an
        interrupted fetch or build leaves. Other keys are left alone.
    type: list
    elements: dict
    default: []
  cuda:
    description: Whether to read what CUDA depends on besides NVML (kernel module, device nodes, toolkits, compilers).
    type: bool
    default: false
  evidence_directory:
    description: Folder of the reports that verification has kept; C(overheads) come from them.
    type: path
    default: /var/lib/llama-tiers/evidence
  toolkit_path: {description: Folder of a toolkit to look at besides the usual places, type: str, default: ""}
attributes:
  check_mode: {support: full}
author: [llama-tiers]
"""

EXAMPLES = r"""
- name: Read the host
  gpu_facts:
    needs:
      - path: /var/lib/llama-tiers/models/0123456789ab/model.gguf
        done: /var/lib/llama-tiers/models/0123456789ab/model.gguf
        left: /var/lib/llama-tiers/models/0123456789ab/model.gguf.part
  vars:
    ansible_python_interpreter: /opt/llama-tiers/checker/bin/python
"""

RETURN = r"""
common_nodes:
  description: Device nodes that CUDA opens besides the one of each card
  type: list
  elements: str
  returned: success
profile:
  description: What was read, as checker.preflight.HostProfile holds it.
  type: dict
  returned: success
  contains:
    driver: {description: Version and cuda_version; null when NVML cannot be opened, type: dict}
    gpus: {description: The cards that answer, in NVML's order, type: list, elements: dict}
    tiers_mib:
      description: By UUID what running tiers hold of the card; null where the driver does not tell
      type: dict
    problem: {description: Why NVML could not tell everything; null when it could, type: str}
    overheads:
      description: >-
        By UUID what a tier's process was measured to take of the card beside the engine's buffers, under the driver
        that runs now: C(mib) and C(source), as checker.residuals.overheads tells it; absent without a driver
      type: dict
    row_overheads: {description: 'The same of tiers with row split, by UUID and model', type: dict}
    ram_mib: {description: Memory of the host, type: int}
    cuda: {description: As checker.cuda.CudaHost holds it; null when it was not asked for, type: dict}
    proven: {description: By tier the spec document with which it was last proven to serve, type: dict}
    disks: {description: For each need its file system with free_mib and what is there, type: list, elements: dict}
"""

import contextlib
import dataclasses
import json
import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def held_bytes(places: str) -> int:
    """Return what the files take that a glob matches, those in the folders that it matches included."""
    files = list(Path("/").glob(places.lstrip("/")))
    files += [Path(folder, name) for place in files for folder, _, names in os.walk(place) for name in names]
    total = 0
    for file in files:
        # An object that is compiled right now may go.
        with contextlib.suppress(OSError):
            total += file.lstat().st_size
    return total


def read_disk(path: str, done: str, left: str, mounts: dict[int, str]) -> dict[str, object]:
    """Return the file system that a path is on, or will be on, and what is there of it.

    `mounts` remembers the name of each file system, so that one that is mounted twice is known as one.
    """
    existing = next(parent for parent in (Path(path), *Path(path).parents) if parent.exists()).resolve()
    statistics = os.statvfs(existing)
    mount = next(parent for parent in (existing, *existing.parents) if parent.is_mount())
    return {
        "path": path,
        "filesystem": mounts.setdefault(existing.stat().st_dev, str(mount)),
        "free_mib": statistics.f_bavail * statistics.f_frsize // 2**20,
        "present_mib": held_bytes(left) // 2**20,
        "done": any(Path("/").glob(done.lstrip("/"))),
    }


def tiers_mib(uuid: str, proc: Path = Path("/proc")) -> float | None:
    """Return the MiB that running tiers hold of a card: the processes in the control groups of their units.

    None when the driver does not tell of one of them.
    """
    from checker import hardware

    held = 0.0
    for process in hardware.processes(uuid):
        cgroup = proc / str(process.pid) / "cgroup"
        if cgroup.exists() and "/llama-tier-" in cgroup.read_text():
            if process.used_mib is None:
                return None
            held += process.used_mib
    return held


def read_reports(directory: Path) -> list[object]:
    """Return the reports of earlier verifications, newest first; one that is damaged is passed over."""
    found = []
    for path in sorted(directory.glob("*.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "needs": {"type": "list", "elements": "dict", "default": []},
            "cuda": {"type": "bool", "default": False},
            "evidence_directory": {"type": "path", "default": "/var/lib/llama-tiers/evidence"},
            "toolkit_path": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    from checker import cuda, cuda_host, hardware, proven, residuals

    driver, gpus, problem = None, (), None
    held: dict[str, float | None] = {}
    mounts: dict[int, str] = {}
    try:
        driver = hardware.read_driver()
        gpus = hardware.read_gpus()
        for gpu in gpus:
            # Not every card tells its processes; a plan does without.
            with contextlib.suppress(hardware.HardwareError):
                held[gpu.uuid] = tiers_mib(gpu.uuid)
    except hardware.GpuLostError as error:
        gpus, problem = error.found, str(error)
    except hardware.HardwareError as error:
        problem = str(error)
    reports = read_reports(Path(module.params["evidence_directory"]))
    profile = {
        "driver": dataclasses.asdict(driver) if driver else None,
        "gpus": [dataclasses.asdict(gpu) for gpu in gpus],
        "tiers_mib": held,
        "problem": problem,
        "cuda": dataclasses.asdict(cuda_host.read(module.params["toolkit_path"])) if module.params["cuda"] else None,
        "ram_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20,
        "proven": proven.specs(),
        # Another driver takes another share of a card.
        **(residuals.overheads(reports, driver.version) if driver else {}),
        "disks": [read_disk(need["path"], need["done"], need["left"], mounts) for need in module.params["needs"]],
    }
    module.exit_json(changed=False, profile=profile, common_nodes=list(cuda.COMMON_NODES))


if __name__ == "__main__":
    main()
