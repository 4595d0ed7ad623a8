"""What is read of a host: the kernel's files, dpkg and the compilers, each as it looks on a real host."""

from __future__ import annotations

from pathlib import Path

import pytest

from checker import cuda_host
from checker.cuda import Compiler, PciCard, Toolkit

PROPRIETARY = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.126.09  Fri Jan  9 01:26:03 UTC\nGCC version:  gcc 14\n"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.58  Release Build  (dvs-builder@U22)  Tue May 19\n"


def write(root: Path, path: str, text: str) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "version", "flavour"), [(PROPRIETARY, "580.126.09", "proprietary"), (OPEN, "595.58", "open")]
)
def test_the_kernel_module_says_version_and_flavour(tmp_path: Path, text: str, version: str, flavour: str) -> None:
    write(tmp_path, "proc/driver/nvidia/version", text)
    host = cuda_host.read(root=tmp_path)
    assert (host.module_version, host.module_flavour) == (version, flavour)


def test_a_bare_host_is_read_as_one() -> None:
    nowhere = Path("/nonexistent")
    host = cuda_host.read(root=nowhere)
    assert (host.module_version, host.module_flavour, host.modules, host.nodes, host.pci_cards) == (
        None,
        None,
        (),
        (),
        (),
    )
    assert host.distribution == "unknown"


def test_modules_nodes_and_distribution_are_read(tmp_path: Path) -> None:
    for module in ("nvidia", "nvidia_uvm", "nvidia_drm"):
        (tmp_path / "sys/module" / module).mkdir(parents=True)
    write(tmp_path, "etc/os-release", 'PRETTY_NAME="Debian GNU/Linux 13"\nVERSION_ID="13"\nID=debian\n')
    write(tmp_path, "dev/nvidiactl", "")
    write(tmp_path, "dev/nvidia-uvm", "")
    (tmp_path / "dev/nvidia-caps").mkdir()
    host = cuda_host.read(root=tmp_path)
    assert host.modules == ("nvidia", "nvidia_uvm")
    assert host.nodes == ("/dev/nvidia-uvm", "/dev/nvidiactl")
    assert host.distribution == "debian 13"


def test_cards_on_the_bus_are_display_controllers_of_nvidia(tmp_path: Path) -> None:
    devices = tmp_path / "sys/bus/pci/devices"
    (tmp_path / "sys/bus/pci/drivers/nouveau").mkdir(parents=True)
    for address, vendor, kind in [
        ("0000:00:02.0", "0x8086", "0x030000"),
        ("0000:01:00.0", "0x10de", "0x030000"),
        ("0000:01:00.1", "0x10de", "0x040300"),
        ("0000:02:00.0", "0x10de", "0x030200"),
    ]:
        write(devices, f"{address}/vendor", f"{vendor}\n")
        write(devices, f"{address}/class", f"{kind}\n")
    (devices / "0000:01:00.0/driver").symlink_to(tmp_path / "sys/bus/pci/drivers/nouveau")
    assert cuda_host.read(root=tmp_path).pci_cards == (
        PciCard("0000:01:00.0", "nouveau"),
        PciCard("0000:02:00.0", None),
    )


def script(path: Path, prints: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{prints}\nEND\n")
    path.chmod(0o755)


def test_toolkits_and_compilers_are_found_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release {}, V{}.99"
    script(tmp_path / "usr/local/cuda-12.9/bin/nvcc", says.format("12.9", "12.9"))
    (tmp_path / "usr/local/cuda").symlink_to("cuda-12.9")
    script(tmp_path / "given/bin/nvcc", says.format("12.4", "12.4"))
    script(tmp_path / "opt/cuda-broken/bin/nvcc", "no release here")
    script(tmp_path / "path/g++-13", "13")
    script(tmp_path / "path/g++", "14")
    (tmp_path / "path/g++-14").symlink_to("g++")
    monkeypatch.setenv("PATH", f"{tmp_path}/path:/bin")

    host = cuda_host.read(str(tmp_path / "given"), tmp_path)

    assert host.toolkits == (
        Toolkit(f"{tmp_path}/given/bin/nvcc", "12.4", packaged=False),
        Toolkit(f"{tmp_path}/usr/local/cuda-12.9/bin/nvcc", "12.9", packaged=False),
    )
    assert Compiler(f"{tmp_path}/path/g++", 14) in host.compilers
    assert Compiler(f"{tmp_path}/path/g++-13", 13) in host.compilers
    assert len([compiler for compiler in host.compilers if compiler.major == 14]) == 1


def test_packages_of_the_driver_are_those_of_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(
        tmp_path / "path/dpkg-query",
        "libcuda1:amd64 580.126.09-1 hold installed\n"
        "nvidia-driver-580 580.126.09-0ubuntu0.24.04.1 install installed\n"
        "nvidia-settings 1:580.126.09-2 install config-files\n"
        "nvidia-modprobe 570.133.07-1 install installed",
    )
    write(tmp_path, "proc/driver/nvidia/version", PROPRIETARY)
    monkeypatch.setenv("PATH", f"{tmp_path}/path:/bin:/usr/bin")
    packages = cuda_host.read(root=tmp_path).packages
    assert [(package.name, package.held) for package in packages] == [
        ("libcuda1:amd64", True),
        ("nvidia-driver-580", False),
    ]


@pytest.mark.parametrize(
    ("shown", "state"),
    [
        ("LoadState=loaded\nActiveState=active", "active"),
        ("LoadState=loaded\nActiveState=inactive", "inactive"),
        ("LoadState=not-found\nActiveState=inactive", "absent"),
    ],
)
def test_the_persistence_daemon_runs_or_does_not_or_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, state: str
) -> None:
    script(tmp_path / "path/systemctl", shown)
    monkeypatch.setenv("PATH", f"{tmp_path}/path:/bin:/usr/bin")
    assert cuda_host.read(root=tmp_path).persistence == state


def test_the_version_of_the_libraries_is_in_their_real_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = write(tmp_path, "lib/libnvidia-ml.so.580.142", "")
    (tmp_path / "lib/libnvidia-ml.so.1").symlink_to(library)
    script(tmp_path / "path/ldconfig", f"\tlibnvidia-ml.so.1 (libc6,x86-64) => {tmp_path}/lib/libnvidia-ml.so.1")
    monkeypatch.setenv("PATH", f"{tmp_path}/path:/bin:/usr/bin")
    assert cuda_host.read(root=tmp_path).library_version == "580.142"
