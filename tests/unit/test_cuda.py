"""The rules about drivers and kernel modules: what is refused, in which words, and what is not."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from cuda_hosts import AMPERE, BLACKWELL, GOOD, MAXWELL, PASCAL, TURING, host
from hypothesis import given
from hypothesis import strategies as st

from checker import cuda
from checker.cuda import GENERATIONS, TOOLKITS, Card, CudaHost, PciCard, Version, version

MIXED = [AMPERE, PASCAL]


def said(cards: list[Card], driver: str | None, on: CudaHost) -> list[str]:
    return [fault.sentence for fault in cuda.driver_faults(cards, driver, on)]


def test_the_tables_are_in_order() -> None:
    assert [generation.first for generation in GENERATIONS] == sorted(generation.first for generation in GENERATIONS)
    assert [rule.first for rule in TOOLKITS] == sorted(rule.first for rule in TOOLKITS)
    assert all(rule.oldest_card <= rule.newest_card for rule in TOOLKITS)


def test_a_version_is_its_first_two_numbers() -> None:
    assert version("580.126.09") == (580, 126)
    assert version("12.4") < version("12.10") < version("13")
    assert str(version("6.1")) == "6.1"


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("2.1", "Kepler"),
        ("5.2", "Maxwell"),
        ("6.1", "Pascal"),
        ("7.0", "Volta"),
        ("7.5", "Turing"),
        ("8.6", "Ampere"),
        ("8.9", "Ada"),
        ("9.0", "Hopper"),
        ("10.3", "Blackwell"),
        ("12.1", "Blackwell"),
    ],
)
def test_a_card_belongs_to_a_generation(capability: str, name: str) -> None:
    assert Card("a card", version(capability)).generation.name == name


def test_branch_580_with_the_proprietary_modules_serves_every_card_before_blackwell() -> None:
    assert said([MAXWELL, PASCAL, TURING, AMPERE], "580.126.09", GOOD) == []


def test_a_branch_after_580_is_refused_for_the_card_it_ignores_alone() -> None:
    newer = host(module_version="590.44.01")
    assert said(MIXED, "590.44.01", newer) == [
        "GTX 1060 (compute capability 6.1, Pascal): driver branch 580 is the last that serves Pascal, found 590.44.01, "
        "which ignores the card; install branch 580 and hold it (gpu_host_hold_driver)"
    ]
    assert said([AMPERE, TURING], "590.44.01", newer) == []


def test_the_kernel_modules_version_stands_in_where_nvml_does_not_answer() -> None:
    (sentence,) = said([PASCAL], None, host(module_version="595.10"))
    assert "found 595.10" in sentence
    assert said([PASCAL], None, host(module_version=None, module_flavour=None)) == []


def test_open_modules_hide_a_card_before_turing() -> None:
    (sentence,) = said(MIXED, "580.126.09", host(module_flavour="open"))
    assert sentence == (
        "GTX 1060 (compute capability 6.1, Pascal): the open kernel modules serve Turing and later only, found open "
        "modules 580.126.09; install the proprietary ones (Debian: nvidia-kernel-dkms in place of "
        "nvidia-open-kernel-dkms; Ubuntu: nvidia-driver-580 in place of nvidia-driver-580-open) and reboot"
    )
    assert said([TURING, AMPERE], "580.126.09", host(module_flavour="open")) == []


def test_blackwell_needs_the_open_modules_and_a_branch_that_knows_it() -> None:
    (branch, flavour) = said([BLACKWELL], "550.163.01", host(module_version="550.163.01"))
    assert "driver branch 570 is the first that serves Blackwell, found 550.163.01" in branch
    assert "install the open ones (Debian: nvidia-open-kernel-dkms; Ubuntu: nvidia-driver-<branch>-open)" in flavour
    assert said([BLACKWELL, AMPERE], "590.44.01", host(module_flavour="open", module_version="590.44.01")) == []


@pytest.mark.parametrize("flavour", ["open", "proprietary", None])
def test_no_driver_serves_a_pascal_and_a_blackwell_card_together(flavour: str | None) -> None:
    (sentence,) = said([PASCAL, BLACKWELL], "580.126.09", host(module_flavour=flavour))
    assert sentence.startswith(
        "GTX 1060 (compute capability 6.1, Pascal) needs the proprietary kernel modules and RTX 5060"
    )
    assert "no driver serves both in one host" in sentence


def test_libraries_that_were_upgraded_under_the_loaded_module_are_named() -> None:
    assert said([PASCAL], None, host(library_version="580.142")) == [
        "the loaded kernel module is 580.126.09, the driver's libraries are 580.142: they have to be of one version; "
        "reboot, and hold the driver's packages (gpu_host_hold_driver)"
    ]


def test_nouveau_is_named_with_the_cards_that_it_holds() -> None:
    held = host(modules=("nouveau",), pci_cards=(PciCard("0000:01:00.0", "nouveau"),), module_version=None)
    (sentence,) = said([AMPERE], None, held)
    assert "nouveau is loaded and holds 0000:01:00.0" in sentence
    assert "blacklist nouveau" in sentence


def test_a_card_that_llama_cpp_does_not_know_is_named() -> None:
    sentences = said([Card("GT 710", version("3.5"))], "470.256.02", host(module_version="470.256.02"))
    assert sentences == [
        "GT 710 (compute capability 3.5, Kepler): llama.cpp's CUDA back end serves compute capability 5.0 and later; "
        "take the card off gpus of the inventory"
    ]


def test_a_good_host_has_no_fault_of_devices() -> None:
    assert cuda.device_faults([0, 1], GOOD) == []
    assert cuda.persistence_faults(GOOD) == []


def test_missing_modules_and_nodes_say_what_mends_them() -> None:
    bare = host(modules=("nvidia",), nodes=("/dev/nvidia0", "/dev/nvidiactl"), persistence="inactive")
    uvm, nodes = cuda.device_faults([0, 1], bare)
    assert uvm.mended_by == "gpu_host_load_modules"
    assert "modprobe nvidia_uvm" in uvm.sentence
    assert nodes.mended_by == "gpu_host_device_nodes"
    assert "/dev/nvidia-uvm, /dev/nvidia-uvm-tools, /dev/nvidia1 are missing" in nodes.sentence
    assert "/usr/bin/nvidia-modprobe -c=255 -c=0 -c=1 && /usr/bin/nvidia-modprobe -u -c=0 makes them" in nodes.sentence
    (daemon,) = cuda.persistence_faults(bare)
    assert daemon.mended_by == "gpu_host_persistence"


def test_what_is_not_installed_can_not_be_mended_by_the_role() -> None:
    bare = host(modprobe=None, nodes=(), persistence="absent")
    (nodes,) = cuda.device_faults([0], bare)
    (daemon,) = cuda.persistence_faults(bare)
    assert (nodes.mended_by, daemon.mended_by) == (None, None)
    assert "install the package nvidia-modprobe" in nodes.sentence
    assert "install the package nvidia-persistenced" in daemon.sentence


def test_cards_on_the_bus_that_nvml_does_not_list_are_named() -> None:
    bus = host(pci_cards=(PciCard("0000:01:00.0", "nvidia"), PciCard("0000:02:00.0", None)))
    assert cuda.unserved_cards(["00000000:01:00.0"], bus) == [
        "0000:02:00.0 on the PCI bus is an NVIDIA card that the driver does not serve (kernel driver: none); "
        "journalctl --dmesg --grep NVRM says why"
    ]
    assert cuda.unserved_cards(["00000000:01:00.0", "00000000:02:00.0"], bus) == []
    (passed_through,) = cuda.unserved_cards([], host(pci_cards=(PciCard("0000:01:00.0", "vfio-pci"),)))
    assert passed_through.endswith("(kernel driver: vfio-pci); vfio-pci holds it: take the card from it, and reboot")


def test_a_host_goes_through_json() -> None:
    assert cuda.from_json(asdict(GOOD)) == GOOD


@given(
    st.lists(st.sampled_from([MAXWELL, PASCAL, TURING, AMPERE, BLACKWELL]), min_size=1, max_size=4, unique=True),
    st.integers(400, 620),
    st.sampled_from(["open", "proprietary"]),
)
def test_a_driver_passes_exactly_when_every_card_is_served_by_it(cards: list[Card], branch: int, flavour: str) -> None:
    def serves(card: Card) -> bool:
        old = card.capability < Version(7, 5)
        new = card.capability >= Version(10, 0)
        return (not old or (branch <= 580 and flavour == "proprietary")) and (
            not new or (branch >= 570 and flavour == "open")
        )

    on = host(module_version=f"{branch}.1", module_flavour=flavour)
    assert (said(cards, f"{branch}.1", on) == []) == all(serves(card) for card in cards)
