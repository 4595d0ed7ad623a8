"""Hosts with NVIDIA's driver, for the tests of the rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from checker.cuda import Card, Compiler, CudaHost, PciCard, Toolkit, version

MAXWELL = Card("GTX 980", version("5.2"))
PASCAL = Card("GTX 1060", version("6.1"))
TURING = Card("RTX 2060", version("7.5"))
AMPERE = Card("RTX 3060 Ti", version("8.6"))
BLACKWELL = Card("RTX 5060", version("12.0"))

GOOD = CudaHost(
    module_version="580.126.09",
    module_flavour="proprietary",
    library_version="580.126.09",
    modules=("nvidia", "nvidia_uvm"),
    nodes=("/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"),
    pci_cards=(PciCard("0000:01:00.0", "nvidia"), PciCard("0000:02:00.0", "nvidia")),
    persistence="active",
    modprobe="/usr/bin/nvidia-modprobe",
    packages=(),
    distribution="debian 13",
    glibc="2.36",
    toolkits=(Toolkit("/usr/bin/nvcc", "12.4", packaged=True),),
    compilers=(Compiler("/usr/bin/g++", 14), Compiler("/usr/bin/g++-13", 13)),
)


def host(**changes: Any) -> CudaHost:
    """Return a good host with changes; the libraries are of the kernel module's version."""
    if "module_version" in changes:
        changes = {"library_version": changes["module_version"], **changes}
    return replace(GOOD, **changes)
