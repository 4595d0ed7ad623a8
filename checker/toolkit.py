"""Which CUDA toolkit and g++ a release is compiled with, and for which cards: chosen by the rules of `checker.cuda`.

Pure; runs on hosts. Every refusal names the toolkit, the rule and what would do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from checker.cuda import TOOLKITS, Card, Compiler, Cubin, CudaHost, Toolkit, ToolkitRule, Version, version

# What the package nvidia-cuda-toolkit is.
DISTRIBUTION_TOOLKITS = {
    "debian 12": Version(11, 8),
    "debian 13": Version(12, 4),
    "ubuntu 24.04": Version(12, 0),
}
# What the role's pinned set of NVIDIA's repository is, and what NVIDIA calls the distributions that it has it for.
REPOSITORY_TOOLKIT = Version(12, 9)
REPOSITORIES = {"debian 12": "debian12", "ubuntu 24.04": "ubuntu2404"}


def rule_of(toolkit: Version) -> ToolkitRule | None:
    """Return the rule of a toolkit, of the newest known before it when it is newer; None when it is older than all."""
    return next((rule for rule in reversed(TOOLKITS) if rule.first <= toolkit), None)


def toolkit_problems(
    toolkit: Version, *, packaged: bool, cards: Sequence[Card], driver: str | None, glibc: Version
) -> list[str]:
    """Return every reason why a toolkit can not be used for these cards on this host; none when it can."""
    rule = rule_of(toolkit)
    if rule is None:
        return [f"CUDA {toolkit} is older than {TOOLKITS[0].first}, the first that is known here"]
    problems = [
        f"CUDA {toolkit} does not compile for {card}: it knows compute capability {rule.cards}"
        for card in cards
        if not rule.serves(card.capability)
    ]
    if driver is not None and version(driver).major < rule.oldest_branch:
        problems.append(f"CUDA {toolkit} needs driver branch {rule.oldest_branch} or later, found {driver}")
    if rule.newest_glibc is not None and glibc > rule.newest_glibc and not packaged:
        problems.append(
            f"NVIDIA's headers of CUDA {toolkit} do not compile with glibc {glibc}, only up to {rule.newest_glibc} "
            "(the distribution's own package is mended)"
        )
    return problems


def toolkits_for(cards: Sequence[Card]) -> str:
    """Say which toolkits compile for all of these cards, such as "CUDA 12.8 to 12.9"."""
    fitting = [rule.first for rule in TOOLKITS if all(rule.serves(card.capability) for card in cards)]
    if not fitting:
        return "no CUDA toolkit"
    if fitting[-1] == TOOLKITS[-1].first:
        return f"CUDA {fitting[0]} or later"
    return f"CUDA {fitting[0]} to {fitting[-1]}"


METHODS = ("detect", "debian", "nvidia_repository", "path")
# The release is on the host already.
NO_BUILD = "none"


@dataclass(frozen=True)
class Wish:
    """What the inventory says of the toolkit: a method of METHODS, or NO_BUILD, and the toolkit's folder for `path`."""

    method: str
    path: str = ""


def planned_toolkit(wish: Wish, distribution: str) -> tuple[Version, bool] | str | None:
    """Return version and `packaged` of what a method would install; None when it installs nothing, or the problem."""
    if wish.method == "nvidia_repository" and distribution in REPOSITORIES:
        return REPOSITORY_TOOLKIT, False
    if wish.method == "debian" and distribution in DISTRIBUTION_TOOLKITS:
        return DISTRIBUTION_TOOLKITS[distribution], True
    if wish.method not in ("debian", "nvidia_repository"):
        return None
    known = ", ".join(DISTRIBUTION_TOOLKITS if wish.method == "debian" else REPOSITORIES)
    return f"llama_cpp_toolkit {wish.method!r}: none is known here for {distribution} ({known} have one); use path"


def candidates(wish: Wish, found: Sequence[Toolkit]) -> list[Toolkit]:
    """Return those of the toolkits on the host that a method allows, the newest first."""
    if wish.method == "debian":
        found = [toolkit for toolkit in found if toolkit.packaged]
    elif wish.method == "nvidia_repository":
        found = [t for t in found if not t.packaged and version(t.version) == REPOSITORY_TOOLKIT]
    elif wish.method == "path":
        found = [toolkit for toolkit in found if toolkit.nvcc == f"{wish.path.rstrip('/')}/bin/nvcc"]
    return sorted(found, key=lambda toolkit: version(toolkit.version), reverse=True)


def installable(cards: Sequence[Card], driver: str | None, host: CudaHost) -> list[str]:
    """Return the methods that would install a toolkit that serves every card on this host."""
    fitting = []
    for method in ("debian", "nvidia_repository"):
        planned = planned_toolkit(Wish(method), host.distribution)
        if isinstance(planned, tuple):
            toolkit, packaged = planned
            glibc = version(host.glibc)
            if not toolkit_problems(toolkit, packaged=packaged, cards=cards, driver=driver, glibc=glibc):
                fitting.append(method)
    return fitting


def choose_toolkit(wish: Wish, cards: Sequence[Card], driver: str | None, host: CudaHost) -> Toolkit | str:
    """Return the newest toolkit that the method allows and that serves every card, or why there is none and the fix."""
    found, glibc = host.toolkits, version(host.glibc)
    reasons = []
    for toolkit in candidates(wish, found):
        problems = toolkit_problems(
            version(toolkit.version), packaged=toolkit.packaged, cards=cards, driver=driver, glibc=glibc
        )
        if not problems:
            return toolkit
        reasons.append(f"{toolkit.nvcc}: {'; '.join(problems)}")
    where = f" at {wish.path}" if wish.method == "path" else ""
    said = " | ".join(reasons) or f"found {', '.join(f'{t.nvcc} ({t.version})' for t in found) or 'no nvcc'}"
    methods = " or ".join(installable(cards, driver, host))
    fix = f"set llama_cpp_toolkit to {methods} to have one installed, or" if methods else "install one and set it"
    return (
        f"llama_cpp_toolkit {wish.method!r} finds no toolkit{where} for {', '.join(map(str, cards)) or 'the cards'}: "
        f"{said}. {toolkits_for(cards)} would do: {fix} to path with llama_cpp_toolkit_path"
    )


def toolkit_outlook(wish: Wish, cards: Sequence[Card], driver: str | None, host: CudaHost) -> list[str]:
    """Say before anything is installed or built why the wished toolkit will not do; nothing when it will."""
    glibc = version(host.glibc)
    planned = planned_toolkit(wish, host.distribution)
    if isinstance(planned, str):
        return [planned]
    if planned is not None:
        toolkit, packaged = planned
        problems = toolkit_problems(toolkit, packaged=packaged, cards=cards, driver=driver, glibc=glibc)
        advice = f"; {toolkits_for(cards)} would do: take another llama_cpp_toolkit ({', '.join(METHODS)})"
        return [f"llama_cpp_toolkit {wish.method!r}: {problem}{advice}" for problem in problems]
    chosen = choose_toolkit(wish, cards, driver, host)
    return [chosen] if isinstance(chosen, str) else []


def newest_gcc(toolkit: Version) -> int:
    """Return the newest g++ that a toolkit takes; the toolkit is one of `choose_toolkit`."""
    rule = rule_of(toolkit)
    assert rule is not None
    return rule.newest_gcc


def choose_compiler(toolkit: Version, found: Sequence[Compiler]) -> Compiler | None:
    """Return the newest g++ that the toolkit takes; None when there is none: g++-`newest_gcc` is to be installed."""
    fitting = [compiler for compiler in found if compiler.major <= newest_gcc(toolkit)]
    return max(fitting, key=lambda compiler: compiler.major, default=None)


def architectures(cards: Iterable[Card]) -> list[str]:
    """Return what CMake's CUDA_ARCHITECTURES is to hold: machine code for each kind of card.

    No PTX, which a driver would compile at the first start (57 s: llama.cpp PR #13135; minutes on Pascal).
    """
    return [f"{capability.major}{capability.minor}-real" for capability in sorted({card.capability for card in cards})]


def machine_code(architectures: Iterable[str]) -> list[Cubin]:
    """Return what llama.cpp has made of CUDA_ARCHITECTURES: of all (61-real, 61, 90a-real) but 61-virtual.

    Its ggml-cuda/CMakeLists.txt makes 12xa of a plain 12x.
    """
    asked = (re.match(r"(\d+)([af]?)(-real)?$", name) for name in architectures)
    return [
        Cubin(int(match[1]), specific=match[2] == "a" or (not match[2] and match[1].startswith("12")))
        for match in asked
        if match
    ]


def uncompiled_cards(cards: Sequence[Card], architectures: Sequence[str]) -> list[str]:
    """Say for each card that a build for these architectures would have no machine code for it."""
    return [
        f"{card}: llama_cpp_cuda_architectures ({', '.join(architectures)}) has no machine code for it; "
        f"add {card.capability.major}{card.capability.minor}-real, or leave the variable empty for the cards' own"
        for card in cards
        if not served_by(card.capability, machine_code(architectures))
    ]


def served_by(capability: Version, cubins: Iterable[Cubin]) -> bool:
    """Whether one of the cubins runs on a card."""
    return any(cubin.runs_on(capability) for cubin in cubins)


def unproven_cards(cards: Sequence[Card], cubins: Mapping[Cubin, int]) -> list[str]:
    """Say for each card that has no machine code in a program; `cubins` counts them by architecture."""
    there = ", ".join(f"{cubin} ({count})" for cubin, count in cubins.items()) or "none at all"
    return [
        f"{card}: the program has no machine code for it; it holds {there}, and would have to be built for "
        f"{card.capability.major}{card.capability.minor}-real"
        for card in cards
        if not served_by(card.capability, cubins)
    ]
