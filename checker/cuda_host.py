"""What of this host decides, besides NVML, whether CUDA works and can be built: read, not judged (`checker.cuda` does).

Reads /proc, /sys, /dev, dpkg, systemd and the compilers; `root` stands for "/" in tests.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from checker import program
from checker.cuda import OPEN, PROPRIETARY, Compiler, CudaHost, Package, PciCard, Toolkit

_NVIDIA_VENDOR = "0x10de"
# PCI base class 03: display controller; an NVIDIA card has audio and USB functions besides.
_DISPLAY_CLASS = "0x03"
_MODULES = ("nvidia", "nvidia_uvm", "nouveau")
_PERSISTENCE_UNIT = "nvidia-persistenced.service"
_TIMEOUT_S = 30


def read(toolkit_path: str = "", root: Path = Path("/")) -> CudaHost:
    """Read this host; `toolkit_path` is a toolkit's folder to look at besides the usual ones, "" for none."""
    module_version, flavour = _kernel_module(root)
    library_version = _library_version()
    return CudaHost(
        module_version=module_version,
        module_flavour=flavour,
        library_version=library_version,
        modules=tuple(name for name in _MODULES if (root / "sys/module" / name).is_dir()),
        nodes=tuple(sorted(f"/dev/{node.name}" for node in (root / "dev").glob("nvidia*") if not node.is_dir())),
        pci_cards=_pci_cards(root),
        persistence=_persistence(),
        modprobe=shutil.which("nvidia-modprobe"),
        packages=_driver_packages(module_version or library_version),
        distribution=_distribution(root),
        glibc=platform.libc_ver()[1],
        toolkits=read_toolkits(toolkit_path, root),
        compilers=_compilers(),
    )


def _kernel_module(root: Path) -> tuple[str | None, str | None]:
    """Return version and flavour of the loaded module, from a line that ends the same for both.

    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.126.09  Release Build ..." or
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.126.09  ..."
    """
    try:
        line = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return None, None
    found = re.search(r"Kernel Module\D.*?(\d+\.\d+(?:\.\d+)?)\s", line + " ")
    return (found[1] if found else None), (OPEN if "Open Kernel Module" in line else PROPRIETARY)


def _library_version() -> str | None:
    """Return the version of the driver's libraries: the real name of libnvidia-ml.so.1 ends with it."""
    for line in _run(["ldconfig", "-p"]).splitlines():
        if line.strip().startswith("libnvidia-ml.so.1 "):
            found = re.search(r"\.so\.(\d+\.\d+(?:\.\d+)?)$", str(Path(line.rpartition("=> ")[2].strip()).resolve()))
            return found[1] if found else None
    return None


def _pci_cards(root: Path) -> tuple[PciCard, ...]:
    cards = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        if _word(device / "vendor") == _NVIDIA_VENDOR and _word(device / "class").startswith(_DISPLAY_CLASS):
            driver = device / "driver"
            cards.append(PciCard(device.name, driver.resolve().name if driver.exists() else None))
    return tuple(cards)


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _persistence() -> str:
    shown = _run(["systemctl", "show", "--property=LoadState,ActiveState", _PERSISTENCE_UNIT])
    if "LoadState=loaded" not in shown:
        return "absent"
    return "active" if "ActiveState=active" in shown else "inactive"


def _driver_packages(driver: str | None) -> tuple[Package, ...]:
    """Return the installed packages of the driver: those whose upstream version is that of the driver."""
    if driver is None:
        return ()
    listed = _run(
        ["dpkg-query", "--show", "--showformat", "${binary:Package} ${Version} ${db:Status-Want} ${db:Status-Status}\n"]
    )
    packages = []
    for line in listed.splitlines():
        name, version, want, status = line.split(" ")
        # An epoch stands before a colon, Debian's own revision after the last hyphen.
        if status == "installed" and version.rpartition(":")[2].rpartition("-")[0] == driver:
            packages.append(Package(name, version, want == "hold"))
    return tuple(packages)


def _distribution(root: Path) -> str:
    try:
        text = (root / "etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    words = dict(re.findall(r'^(\w+)="?(.*?)"?$', text, re.MULTILINE))
    return f"{words.get('ID', 'unknown')} {words.get('VERSION_ID', '')}".strip()


def read_toolkits(path: str = "", root: Path = Path("/")) -> tuple[Toolkit, ...]:
    """Find every nvcc in the usual places, on PATH, and in `path`; one that lies there under two names counts once."""
    places = [Path(path) / "bin/nvcc"] if path else []
    places += sorted(root.glob("usr/local/cuda*/bin/nvcc"), reverse=True) + sorted(root.glob("opt/cuda*/bin/nvcc"))
    on_path = shutil.which("nvcc")
    places += [Path(on_path)] if on_path else []
    toolkits: dict[Path, Toolkit] = {}
    for nvcc in places:
        if nvcc.resolve() not in toolkits and os.access(nvcc, os.X_OK):
            release = re.search(r"release (\d+\.\d+),", _run([str(nvcc), "--version"]))
            if release:
                # Debian's is a script in /usr/bin; NVIDIA's packages and installer never put theirs there.
                toolkits[nvcc.resolve()] = Toolkit(str(nvcc), release[1], str(nvcc) == "/usr/bin/nvcc")
    return tuple(toolkits.values())


def _compilers() -> tuple[Compiler, ...]:
    names = ["g++", *(f"g++-{major}" for major in range(8, 20))]
    found: dict[Path, Compiler] = {}
    for name in names:
        path = shutil.which(name)
        if path and Path(path).resolve() not in found:
            major = _run([path, "-dumpversion"]).strip().partition(".")[0]
            if major.isdigit():
                found[Path(path).resolve()] = Compiler(path, int(major))
    return tuple(found.values())


def _run(command: Sequence[str]) -> str:
    """Return what a command prints, "" when it is not there or fails: what is not there is found absent."""
    try:
        return program.output(command, _TIMEOUT_S, LC_ALL="C")
    except program.ProgramError:
        return ""
