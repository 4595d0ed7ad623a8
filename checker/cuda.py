"""Which drivers, kernel modules and CUDA toolkits serve which cards: rules as data, a driver held against them.

Pure: `checker.cuda_host` reads a host, `checker.toolkit` chooses a toolkit. Sentences name the rule, what was found and
the fix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Version(NamedTuple):
    """A compute capability, or the version of a toolkit or of the C library: 6.1, 12.4, 2.41."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


def version(text: str) -> Version:
    """Read "12.4", "6.1" or "580.126.09" (its first two numbers); ValueError when that is none."""
    major, _, rest = text.partition(".")
    return Version(int(major), int(rest.partition(".")[0] or 0))


class Cubin(NamedTuple):
    """Machine code for an architecture: 86 for sm_86; `specific`, as in sm_90a, when it is for that one alone."""

    arch: int
    specific: bool = False

    def runs_on(self, capability: Version) -> bool:
        """Whether a card takes it: of its major, and of no older minor; a specific one only of the very same.

        CUDA programming guide, "Compute capabilities". That of a family (sm_120f) runs where the plain one does.
        """
        own = Version(*divmod(self.arch, 10))
        return capability == own or (not self.specific and capability.major == own.major and capability > own)

    def __str__(self) -> str:
        return f"sm_{self.arch}{'a' if self.specific else ''}"


@dataclass(frozen=True)
class Generation:
    """A generation of cards, from a compute capability on: the driver branches and kernel modules that serve it."""

    name: str
    first: Version
    oldest_branch: int | None
    newest_branch: int | None
    modules: tuple[str, ...]


OPEN, PROPRIETARY = "open", "proprietary"

# Branches: NVIDIA's Unix graphics feature deprecation schedule ("the 580 series will be the last to support Maxwell,
# Pascal and Volta"; Kepler ended with 470); Blackwell came with 570. Modules: NVIDIA driver installation guide, "Kernel
# modules" (open: Turing and newer; proprietary: required before), and "NVIDIA transitions fully towards open-source GPU
# kernel modules" (Blackwell has no other).
GENERATIONS = (
    Generation("Kepler", Version(3, 0), None, 470, (PROPRIETARY,)),
    Generation("Maxwell", Version(5, 0), None, 580, (PROPRIETARY,)),
    Generation("Pascal", Version(6, 0), None, 580, (PROPRIETARY,)),
    Generation("Volta", Version(7, 0), None, 580, (PROPRIETARY,)),
    Generation("Turing", Version(7, 5), None, None, (OPEN, PROPRIETARY)),
    Generation("Ampere", Version(8, 0), None, None, (OPEN, PROPRIETARY)),
    Generation("Ada", Version(8, 9), None, None, (OPEN, PROPRIETARY)),
    Generation("Hopper", Version(9, 0), None, None, (OPEN, PROPRIETARY)),
    Generation("Blackwell", Version(10, 0), 570, None, (OPEN,)),
)
# ggml-cuda/CMakeLists.txt of b11434: "50 == Maxwell, lowest CUDA 12 standard".
OLDEST_CARD = Version(5, 0)


@dataclass(frozen=True)
class ToolkitRule:
    """What toolkits from a version on compile for and with: cards, newest g++, newest C library, oldest driver branch.

    `newest_glibc` holds for NVIDIA's own packages; a distribution mends the headers of its package. `unknown_cards` are
    between the oldest and the newest card, and came with a later toolkit.
    """

    first: Version
    oldest_card: Version
    newest_card: Version
    newest_gcc: int
    newest_glibc: Version | None
    oldest_branch: int
    unknown_cards: tuple[Version, ...] = ()

    def serves(self, capability: Version) -> bool:
        """Whether these toolkits compile for a card."""
        return self.oldest_card <= capability <= self.newest_card and capability not in self.unknown_cards

    @property
    def cards(self) -> str:
        """The compute capabilities that they know, such as "5.0 to 12.0 but 10.3"."""
        but = f" but {', '.join(map(str, self.unknown_cards))}" if self.unknown_cards else ""
        return f"{self.oldest_card} to {self.newest_card}{but}"


# Cards and branches: CUDA release notes (architectures; table "CUDA Toolkit and minimum required driver version for
# CUDA minor version compatibility"); 12.9 "adds compiler target support for SM architecture 10.3 ... and 12.1" (CUDA
# features archive); 13.0 calls 11.0 what was 10.1 (gcc's nvptx.opt, after PTX ISA 9.0). g++: crt/host_config.h of each
# ("gcc versions later than 13 are not supported").
# C library: NVIDIA/cuda-samples#378, opencv/opencv#27111 (glibc 2.41 declares cospi otherwise than
# crt/math_functions.h before 13.0); ggml-org/llama.cpp#17615 and #19100 (glibc 2.42 declares rsqrt otherwise than that
# of 13.0 and 13.1; 13.2 is reported to compile). Debian 13's own 12.4, whose headers are the system's, compiles with
# its glibc 2.41.
_GLIBC = Version(2, 40)
TOOLKITS = (
    ToolkitRule(Version(11, 8), Version(3, 5), Version(9, 0), 11, _GLIBC, 450),
    ToolkitRule(Version(12, 0), Version(5, 0), Version(9, 0), 12, _GLIBC, 525),
    ToolkitRule(Version(12, 4), Version(5, 0), Version(9, 0), 13, _GLIBC, 525),
    ToolkitRule(Version(12, 8), Version(5, 0), Version(12, 0), 14, _GLIBC, 525, (Version(10, 3), Version(11, 0))),
    ToolkitRule(Version(12, 9), Version(5, 0), Version(12, 1), 14, _GLIBC, 525, (Version(11, 0),)),
    ToolkitRule(Version(13, 0), Version(7, 5), Version(12, 1), 15, Version(2, 41), 580),
    ToolkitRule(Version(13, 2), Version(7, 5), Version(12, 1), 15, None, 580),
)


@dataclass(frozen=True)
class Card:
    """A card that is to be served: NVML's name, compute capability."""

    name: str
    capability: Version

    @property
    def generation(self) -> Generation:
        """The generation that its compute capability belongs to; the oldest of the table for anything older."""
        return next((g for g in reversed(GENERATIONS) if g.first <= self.capability), GENERATIONS[0])

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability}, {self.generation.name})"


@dataclass(frozen=True)
class PciCard:
    """An NVIDIA card on the bus, whatever drives it: address as "0000:01:00.0", kernel driver or None."""

    address: str
    driver: str | None


@dataclass(frozen=True)
class Package:
    """An installed package of the driver."""

    name: str
    version: str
    held: bool


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit on the host; `packaged` when it is the distribution's own."""

    nvcc: str
    version: str
    packaged: bool


@dataclass(frozen=True)
class Compiler:
    """A g++ on the host and its major version."""

    path: str
    major: int


@dataclass(frozen=True)
class CudaHost:
    """What of a host decides, besides NVML, whether CUDA works and can be built.

    `module_version` and `module_flavour` (open, proprietary) are of the loaded kernel module, `library_version` of the
    driver's libraries, None when there is none. `modules` are those loaded of nvidia, nvidia_uvm and nouveau, `nodes`
    the device nodes, `persistence` the state of nvidia-persistenced ("active", "inactive", "absent"), `modprobe` the
    path of nvidia-modprobe, `distribution` as "debian 13".
    """

    module_version: str | None
    module_flavour: str | None
    library_version: str | None
    modules: tuple[str, ...]
    nodes: tuple[str, ...]
    pci_cards: tuple[PciCard, ...]
    persistence: str
    modprobe: str | None
    packages: tuple[Package, ...]
    distribution: str
    glibc: str
    toolkits: tuple[Toolkit, ...]
    compilers: tuple[Compiler, ...]


def from_json(document: Mapping[str, Any]) -> CudaHost:
    """Build it from the document that the module `gpu_facts` returns."""
    return CudaHost(
        **{
            **document,
            "modules": tuple(document["modules"]),
            "nodes": tuple(document["nodes"]),
            "pci_cards": tuple(PciCard(**card) for card in document["pci_cards"]),
            "packages": tuple(Package(**package) for package in document["packages"]),
            "toolkits": tuple(Toolkit(**toolkit) for toolkit in document["toolkits"]),
            "compilers": tuple(Compiler(**compiler) for compiler in document["compilers"]),
        }
    )


# The faults that the role gpu_host can mend, by the variable that lets it.
MODULES, NODES, PERSISTENCE = "gpu_host_load_modules", "gpu_host_device_nodes", "gpu_host_persistence"


@dataclass(frozen=True)
class Fault:
    """A reason why CUDA will not work, or not well; `mended_by` is the variable that lets the role mend it, or None."""

    sentence: str
    mended_by: str | None = None


def driver_faults(cards: Sequence[Card], driver_version: str | None, host: CudaHost) -> list[Fault]:
    """Hold driver and kernel module against the cards that are to be served, those that it hides included.

    `driver_version` is NVML's, None when NVML does not answer: the kernel module's own stands in.
    """
    return [
        *_mismatch(host),
        *_nouveau(host),
        *_too_old(cards),
        *_branch(cards, driver_version or host.module_version),
        *_flavour(cards, host),
    ]


def _mismatch(host: CudaHost) -> Iterable[Fault]:
    if None not in (host.module_version, host.library_version) and host.module_version != host.library_version:
        yield Fault(
            f"the loaded kernel module is {host.module_version}, the driver's libraries are {host.library_version}: "
            "they have to be of one version; reboot, and hold the driver's packages (gpu_host_hold_driver)"
        )


def _nouveau(host: CudaHost) -> Iterable[Fault]:
    held = [card.address for card in host.pci_cards if card.driver == "nouveau"]
    if "nouveau" in host.modules:
        yield Fault(
            f"kernel module nouveau is loaded{' and holds ' + ', '.join(held) if held else ''}; NVIDIA's driver cannot "
            "serve a card that nouveau holds: write 'blacklist nouveau' to /etc/modprobe.d/nouveau.conf, run "
            "update-initramfs -u, and reboot"
        )


def _too_old(cards: Sequence[Card]) -> Iterable[Fault]:
    for card in cards:
        if card.capability < OLDEST_CARD:
            yield Fault(
                f"{card}: llama.cpp's CUDA back end serves compute capability {OLDEST_CARD} and later; take the card "
                "off gpus of the inventory"
            )


def _branch(cards: Sequence[Card], driver: str | None) -> Iterable[Fault]:
    if driver is None:
        return
    branch = version(driver).major
    for card in cards:
        newest, oldest = card.generation.newest_branch, card.generation.oldest_branch
        if newest is not None and branch > newest:
            yield Fault(
                f"{card}: driver branch {newest} is the last that serves {card.generation.name}, found {driver}, which "
                f"ignores the card; install branch {newest} and hold it (gpu_host_hold_driver)"
            )
        if oldest is not None and branch < oldest:
            yield Fault(
                f"{card}: driver branch {oldest} is the first that serves {card.generation.name}, found {driver}; "
                f"install branch {oldest} or later"
            )


def _flavour(cards: Sequence[Card], host: CudaHost) -> Iterable[Fault]:
    only = {
        flavour: [card for card in cards if card.generation.modules == (flavour,)] for flavour in (OPEN, PROPRIETARY)
    }
    if only[OPEN] and only[PROPRIETARY]:
        yield Fault(
            f"{only[PROPRIETARY][0]} needs the proprietary kernel modules and {only[OPEN][0]} the open ones: no driver "
            "serves both in one host; take one of them out, and off gpus of the inventory"
        )
        return
    for flavour, ours in only.items():
        if ours and host.module_flavour not in (None, flavour):
            why = "Turing and later only" if host.module_flavour == OPEN else "cards before Blackwell only"
            packages = (
                "Debian: nvidia-kernel-dkms in place of nvidia-open-kernel-dkms; Ubuntu: nvidia-driver-580 in place of "
                "nvidia-driver-580-open"
                if flavour == PROPRIETARY
                else "Debian: nvidia-open-kernel-dkms; Ubuntu: nvidia-driver-<branch>-open"
            )
            yield Fault(
                f"{', '.join(map(str, ours))}: the {host.module_flavour} kernel modules serve {why}, found "
                f"{host.module_flavour} modules {host.module_version}; install the {flavour} ones ({packages}) and "
                "reboot"
            )


# What CUDA opens besides the /dev/nvidiaN of each card.
COMMON_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")


def device_faults(minors: Sequence[int], host: CudaHost) -> list[Fault]:
    """Name what a process would not reach the cards by: `minors` are the N of /dev/nvidiaN of the cards."""
    faults = []
    if "nvidia" in host.modules and "nvidia_uvm" not in host.modules:
        faults.append(
            Fault(
                "kernel module nvidia_uvm is not loaded, so CUDA finds no device and llama.cpp falls to the CPU; "
                "modprobe nvidia_uvm, or let gpu_host_load_modules do it now and at boot",
                MODULES,
            )
        )
    wanted = (*COMMON_NODES, *(f"/dev/nvidia{minor}" for minor in minors))
    missing = [node for node in wanted if node not in host.nodes]
    if missing:
        how = (
            f"{host.modprobe} -c=255 {' '.join(f'-c={minor}' for minor in minors)} && {host.modprobe} -u -c=0 "
            "makes them, or let gpu_host_device_nodes do it now and at boot"
            if host.modprobe
            else "install the package nvidia-modprobe, which makes them"
        )
        faults.append(
            Fault(
                f"device nodes {', '.join(missing)} are missing: a tier's sandbox cannot make them; {how}",
                NODES if host.modprobe else None,
            )
        )
    return faults


def persistence_faults(host: CudaHost) -> list[Fault]:
    """Name a persistence daemon that does not run: without it a card that nobody uses is shut down and set up anew."""
    if host.persistence == "active":
        return []
    if host.persistence == "absent":
        return [
            Fault(
                "nvidia-persistenced is not installed, so a card that no process uses is set up anew before each use; "
                "install the package nvidia-persistenced, or set gpu_host_persistence: false"
            )
        ]
    return [
        Fault("nvidia-persistenced does not run; systemctl enable --now nvidia-persistenced", PERSISTENCE),
    ]


def unserved_cards(listed: Sequence[str], host: CudaHost) -> list[str]:
    """Name the NVIDIA cards on the bus that NVML does not list; `listed` are NVML's bus ids (00000000:01:00.0)."""
    known = {bus_id.lower()[-12:] for bus_id in listed}
    return [
        f"{card.address} on the PCI bus is an NVIDIA card that the driver does not serve "
        f"(kernel driver: {card.driver or 'none'}); "
        + (
            "journalctl --dmesg --grep NVRM says why"
            if card.driver in (None, "nvidia")
            else f"{card.driver} holds it: take the card from it, and reboot"
        )
        for card in host.pci_cards
        if card.address not in known
    ]
