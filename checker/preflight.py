"""Is this host the one that the inventory describes, and is there room on it? Pure: judges what `gpu_facts` read.

Every function returns sentences, one for each problem, that name the thing, the value and the fix.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from checker import cuda, toolkit
from checker.cards import KNOWN_CARDS
from checker.catalogue import ModelEntry, PartEntry
from checker.hardware import MIB, Driver, Gpu
from checker.tier import is_here


@dataclass(frozen=True)
class Disk:
    """Where something is to lie: `filesystem` is its mount point, `done` says that it lies there already.

    `present_mib` is what an interrupted fetch or build has left there and the next one goes on with.
    """

    path: str
    filesystem: str
    free_mib: int
    present_mib: int
    done: bool


@dataclass(frozen=True)
class HostProfile:
    """What was read on a host. `problem` says why NVML could not tell everything, None when it did.

    `driver` is None and `gpus` is empty when NVML could not be opened; with a lost card `gpus` holds the others.
    `cuda` is what else CUDA depends on, None when the back end is another one.
    """

    driver: Driver | None
    gpus: tuple[Gpu, ...]
    problem: str | None
    ram_mib: int
    disks: tuple[Disk, ...]
    cuda: cuda.CudaHost | None = None


@dataclass(frozen=True)
class Need:
    """Something that takes room on the host: `mib` at `path`, unless a file that matches the glob `done` is there.

    The glob `left` matches what an interrupted fetch or build leaves. `passing_mib` of `mib` are free again before the
    next need of this kind begins.
    """

    what: str
    path: str
    mib: int
    done: str
    left: str = ""
    passing_mib: int = 0


def from_json(document: Mapping[str, Any]) -> HostProfile:
    """Build a profile from the document that the module `gpu_facts` returns."""
    return HostProfile(
        driver=Driver(**document["driver"]) if document["driver"] else None,
        gpus=tuple(Gpu(**gpu) for gpu in document["gpus"]),
        problem=document["problem"],
        ram_mib=document["ram_mib"],
        disks=tuple(Disk(**disk) for disk in document["disks"]),
        cuda=cuda.from_json(document["cuda"]) if document.get("cuda") else None,
    )


def model_needs(served: Sequence[str], models: Mapping[str, Any], directory: str) -> list[Need]:
    """List every file of the models that are `served`, by name, below the host's `directory` of models.

    The inventory has passed `catalogue.check_inventory`. A model whose size nobody knows yet is left out.
    """
    needs = []
    for name in dict.fromkeys(served):
        model = ModelEntry.model_validate(models[name])
        parts: Sequence[PartEntry | ModelEntry] = model.parts or [model]
        place = f"{directory}/{(parts[0].sha256 or '')[:12]}"
        for part in parts:
            path = f"{place}/{part.file}"
            if part.bytes is not None:
                there = glob.escape(path)
                needs.append(Need(f"model {name}", path, -(-part.bytes // MIB), there, left=f"{there}.part"))
    return needs


def build_needs(
    engine: str, tiers: Sequence[Mapping[str, Any]], backend: str, directory: str, releases: str, mib: int
) -> list[Need]:
    """List the builds that a host and its tiers need, of each engine one, each with so many MiB in `directory`.

    `releases` is the folder that holds what is built already. Three quarters of a build are objects, which go when it
    is published; release, source and what the compiler cache has of it stay.
    """
    names = dict.fromkeys([engine, *(tier["engine"] for tier in tiers if tier.get("engine"))])
    return [
        Need(
            f"build of llama.cpp {name}",
            f"{directory}/{name}",
            mib,
            f"{glob.escape(f'{releases}/{name}-{backend}')}*/bin/llama-server",
            # Perhaps of another release of this engine: the role llama_cpp, which knows the release, looks again.
            left=f"{glob.escape(f'{directory}/{name}-{backend}')}*/tree",
            passing_mib=mib * 3 // 4,
        )
        for name in names
    ]


def judge(
    profile: HostProfile, expected: Sequence[Mapping[str, Any]], needs: Sequence[Need], min_ram_mib: int
) -> list[str]:
    """Return every reason why the host cannot be provisioned; none when all is well.

    `expected` are the inventory's `gpus`; `needs` belong to `profile.disks` by path.
    """
    return [
        *gpu_problems(profile, expected),
        *ram_problems(profile.ram_mib, min_ram_mib),
        *disk_problems(profile.disks, needs),
    ]


def gpu_problems(profile: HostProfile, expected: Sequence[Mapping[str, Any]]) -> list[str]:
    """Hold the cards of the inventory against those of the host."""
    problems = [profile.problem] if profile.problem else []
    here = [gpu for gpu in expected if is_here(gpu.get("rpc_endpoint"))]
    problems += [
        f"gpus of the inventory has {uuid} {count} times: list each card once"
        for uuid, count in Counter(gpu["uuid"] for gpu in here).items()
        if count > 1
    ]
    if profile.problem and not profile.gpus:
        return problems
    found = {gpu.uuid: gpu for gpu in profile.gpus}
    listed = ", ".join(f"{gpu.uuid} ({gpu.name})" for gpu in profile.gpus) or "no GPU at all"
    for gpu in {gpu["uuid"]: gpu for gpu in here}.values():
        uuid, name = gpu["uuid"], gpu["name"]
        if uuid not in found and uuid not in (profile.problem or ""):
            problems.append(
                f"{uuid} ({name}) is not on this host; found {listed}; "
                "put the card back, or edit gpus in the inventory and plan again"
            )
        elif uuid in found and found[uuid].name != name:
            problems.append(
                f"{uuid} is called {name!r} in the inventory, NVML calls it {found[uuid].name!r}; "
                "correct the name, or the UUID if another card was meant"
            )
    return problems


def cuda_cards(profile: HostProfile, expected: Sequence[Mapping[str, Any]]) -> dict[str, cuda.Card | None]:
    """Return by UUID the inventory's cards that CUDA is to serve, those that the driver hides included.

    The compute capability is NVML's, the inventory's, the datasheet's, or the name's; None where nobody knows it.
    """
    read = {gpu.uuid: gpu.compute_capability for gpu in profile.gpus}
    cards = {}
    for gpu in expected:
        name = gpu["name"]
        known = KNOWN_CARDS.get(name)
        capability = (
            read.get(gpu["uuid"])
            or gpu.get("compute_capability")
            or (known and known.compute_capability)
            or cuda.named_capability(name)
        )
        if not gpu.get("rpc_endpoint"):
            cards[gpu["uuid"]] = cuda.Card(name, cuda.version(capability)) if capability else None
    return cards


def cuda_problems(
    profile: HostProfile,
    expected: Sequence[Mapping[str, Any]],
    wish: toolkit.Wish,
    mends: Sequence[str],
    *,
    mended: bool,
) -> list[str]:
    """Hold driver, devices and toolkit against the cards of the inventory; none when the back end is not CUDA.

    `mends` names what the role is to mend (`cuda.Fault.mended_by`), `mended` says that it has done so: before, as in
    check mode, what it will mend is no problem.
    """
    if profile.cuda is None:
        return []
    ours = cuda_cards(profile, expected)
    cards = [card for card in ours.values() if card]
    driver = profile.driver.version if profile.driver else None
    faults = cuda.driver_faults(cards, driver, profile.cuda)
    present = [gpu for gpu in profile.gpus if gpu.uuid in ours]
    if profile.driver is not None:
        minors = [gpu.minor_number for gpu in present if gpu.minor_number is not None]
        faults += cuda.device_faults(minors, profile.cuda)
        faults += cuda.persistence_faults(profile.cuda) if cuda.PERSISTENCE in mends else []
    problems = [fault.sentence for fault in faults if mended or fault.mended_by not in mends]
    if profile.driver is not None and len(present) < len(ours):
        problems += [
            cuda.unjudged_card(gpu["name"], profile.driver.version, profile.cuda)
            for gpu in expected
            if gpu["uuid"] in ours and ours[gpu["uuid"]] is None and gpu["uuid"] not in (profile.problem or "")
        ]
        problems += cuda.unserved_cards([gpu.pci_bus_id for gpu in profile.gpus], profile.cuda)
    if wish.method == toolkit.NO_BUILD:
        return problems
    return problems + toolkit.toolkit_outlook(wish, cards, driver or profile.cuda.module_version, profile.cuda)


def ram_problems(ram_mib: int, min_ram_mib: int) -> list[str]:
    """Hold the host's memory against what is needed."""
    if ram_mib >= min_ram_mib:
        return []
    return [
        f"this host has {ram_mib:,} MiB of RAM, gpu_host_min_ram_mib asks for {min_ram_mib:,} MiB; "
        "add memory, or lower gpu_host_min_ram_mib if the tiers need less"
    ]


def disk_problems(disks: Sequence[Disk], needs: Sequence[Need]) -> list[str]:
    """Hold free disk against what is still to come, file system by file system."""
    at = {disk.path: disk for disk in disks}
    missing: dict[str, list[tuple[Need, int]]] = {}
    for need in needs:
        disk = at[need.path]
        rest = need.mib - disk.present_mib
        if not disk.done and rest > 0:
            missing.setdefault(disk.filesystem, []).append((need, rest))
    free = {disk.filesystem: disk.free_mib for disk in disks}
    problems = []
    for filesystem, wanted in missing.items():
        passing = [need.passing_mib for need, _ in wanted]
        once = sum(passing) - max(passing)
        total = sum(rest for _, rest in wanted) - once
        if total > free[filesystem]:
            shares = " + ".join(f"{need.what} {rest:,}" for need, rest in wanted)
            shares += f" - {once:,} that are free again before the next build" if once else ""
            problems.append(
                f"file system {filesystem}: {total:,} MiB are needed ({shares}), {free[filesystem]:,} MiB are free; "
                f"make {total - free[filesystem]:,} MiB free, or mount a larger file system there"
            )
    return problems
