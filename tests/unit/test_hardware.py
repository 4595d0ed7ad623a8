"""What `hardware` makes of NVML's answers. The lab plays the ordinary answers; here are those that it cannot play."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pynvml
import pytest

from checker import hardware

MIB = 1024 * 1024
CARDS = [
    {"uuid": "GPU-a", "name": "NVIDIA GeForce RTX 3060 Ti", "cc": (8, 6), "total": 8192, "bus": 256, "clock": 7001},
    {"uuid": "GPU-b", "name": "NVIDIA GeForce GTX 1060 3GB", "cc": (6, 1), "total": 3072, "bus": 192, "clock": 4004},
]


class FakeNvml:
    """NVML at the boundary of pynvml's functions; `raising` maps (function, card or None) to an NVML error code."""

    def __init__(self) -> None:
        self.raising: dict[tuple[str, int | None], int] = {}
        self.processes: list[SimpleNamespace] = []
        self.open = 0

    def answer(self, function: str, card: int | None, value: Callable[[], Any]) -> Any:
        code = self.raising.get((function, card))
        if code is not None:
            raise pynvml.NVMLError(code)
        return value()

    def count(self, by: int) -> None:
        self.open += by

    def by_uuid(self, uuid: str) -> int:
        known = [card["uuid"] for card in CARDS]
        if uuid not in known:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return known.index(uuid)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    fake = FakeNvml()

    def system(name: str, value: Callable[[], Any]) -> None:
        monkeypatch.setattr(pynvml, name, lambda: fake.answer(name, None, value))

    def device(name: str, value: Callable[[dict[str, Any]], Any]) -> None:
        monkeypatch.setattr(
            pynvml, name, lambda card, *rest: fake.answer(name, card, lambda: value(CARDS[card])), raising=True
        )

    system("nvmlInit", lambda: fake.count(1))
    system("nvmlShutdown", lambda: fake.count(-1))
    system("nvmlSystemGetDriverVersion", lambda: "580.126.09")
    system("nvmlSystemGetCudaDriverVersion", lambda: 12040)
    system("nvmlDeviceGetCount", lambda: len(CARDS))
    device("nvmlDeviceGetHandleByIndex", CARDS.index)  # a handle is the card's index
    device("nvmlDeviceGetUUID", lambda card: card["uuid"])
    device("nvmlDeviceGetName", lambda card: card["name"])
    device("nvmlDeviceGetPciInfo", lambda card: SimpleNamespace(busId="00000000:01:00.0"))
    device("nvmlDeviceGetMemoryInfo", lambda card: SimpleNamespace(total=card["total"] * MIB, used=300 * MIB))
    device("nvmlDeviceGetCudaComputeCapability", lambda card: card["cc"])
    device("nvmlDeviceGetMemoryBusWidth", lambda card: card["bus"])
    device("nvmlDeviceGetMaxClockInfo", lambda card: card["clock"])
    device("nvmlDeviceGetMinorNumber", CARDS.index)
    device("nvmlDeviceGetComputeRunningProcesses", lambda card: fake.processes)
    device("nvmlDeviceGetClockInfo", lambda card: card["clock"] - 1)
    device("nvmlDeviceGetPowerUsage", lambda card: 120_500)
    device("nvmlDeviceGetEnforcedPowerLimit", lambda card: 200_000)
    device("nvmlDeviceGetTemperature", lambda card: 61)
    device("nvmlDeviceGetCurrPcieLinkGeneration", lambda card: 1)
    device("nvmlDeviceGetMaxPcieLinkGeneration", lambda card: 4)
    device("nvmlDeviceGetCurrPcieLinkWidth", lambda card: 8)
    device("nvmlDeviceGetMaxPcieLinkWidth", lambda card: 16)
    device("nvmlDeviceGetCurrentClocksThrottleReasons", lambda card: 0x1 | 0x4 | 0x40)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", fake.by_uuid)
    yield fake
    assert fake.open == 0, "NVML was left open"


def test_reads_cards_with_the_datasheets_bandwidth(nvml: FakeNvml) -> None:
    first, second = hardware.read_gpus()
    assert first == hardware.Gpu("NVIDIA GeForce RTX 3060 Ti", "GPU-a", "00000000:01:00.0", "8.6", 8192, 300, 448.1, 0)
    assert (second.compute_capability, second.bandwidth_gb_s, second.minor_number) == ("6.1", 192.2, 1)


def test_cuda_version_keeps_its_minor_part(nvml: FakeNvml) -> None:
    assert hardware.read_driver() == hardware.Driver("580.126.09", "12.4")


@pytest.mark.parametrize(
    ("function", "field"),
    [
        ("nvmlDeviceGetMemoryBusWidth", "bandwidth_gb_s"),
        ("nvmlDeviceGetMaxClockInfo", "bandwidth_gb_s"),
        ("nvmlDeviceGetMinorNumber", "minor_number"),
    ],
)
@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND])
def test_a_reading_that_a_card_does_not_tell_is_none(nvml: FakeNvml, function: str, field: str, code: int) -> None:
    nvml.raising[function, 1] = code
    first, second = hardware.read_gpus()
    assert getattr(second, field) is None
    assert getattr(first, field) is not None


@pytest.mark.parametrize(
    ("failing", "named"),
    [
        ("nvmlDeviceGetMemoryInfo", "GPU-b"),
        ("nvmlDeviceGetHandleByIndex", "the card at NVML index 1"),
    ],
)
def test_a_lost_card_is_named_and_does_not_hide_the_others(nvml: FakeNvml, failing: str, named: str) -> None:
    nvml.raising[failing, 1] = pynvml.NVML_ERROR_GPU_IS_LOST
    with pytest.raises(hardware.GpuLostError) as error:
        hardware.read_gpus()
    assert error.value.lost == (named,)
    assert [gpu.uuid for gpu in error.value.found] == ["GPU-a"]
    assert str(error.value).startswith(f"{named}: the GPU is lost")


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "install the driver"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "driver/library version mismatch.*reboot the host"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "modprobe nvidia"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "run as root"),
        (pynvml.NVML_ERROR_UNKNOWN, "NVML says: Unknown Error"),
    ],
)
def test_each_failure_to_open_nvml_names_its_fix(nvml: FakeNvml, code: int, fix: str) -> None:
    nvml.raising["nvmlInit", None] = code
    for read in (hardware.read_driver, hardware.read_gpus, lambda: hardware.processes("GPU-a")):
        with pytest.raises(hardware.HardwareError, match=fix):
            read()


def test_processes_are_by_pid_and_what_the_driver_does_not_tell_is_not_nothing(nvml: FakeNvml) -> None:
    nvml.processes = [
        SimpleNamespace(pid=20, usedGpuMemory=int(670.5 * MIB)),
        SimpleNamespace(pid=7, usedGpuMemory=None),
        SimpleNamespace(pid=7, usedGpuMemory=MIB),
    ]
    assert hardware.processes("GPU-b") == (
        hardware.GpuProcess(7, None),
        hardware.GpuProcess(7, 1.0),
        hardware.GpuProcess(20, 670.5),
    )


def test_processes_of_an_unknown_card_names_those_that_are_there(nvml: FakeNvml) -> None:
    with pytest.raises(hardware.HardwareError, match="GPU-x is not on this host; found: GPU-a, GPU-b"):
        hardware.processes("GPU-x")


def test_processes_of_a_lost_card(nvml: FakeNvml) -> None:
    nvml.raising["nvmlDeviceGetComputeRunningProcesses", 0] = pynvml.NVML_ERROR_GPU_IS_LOST
    with pytest.raises(hardware.HardwareError, match="GPU-a: the GPU is lost"):
        hardware.processes("GPU-a")


def test_the_state_of_a_card_is_read_in_plain_units(nvml: FakeNvml) -> None:
    nvml.processes = [SimpleNamespace(pid=7, usedGpuMemory=MIB)]
    found = hardware.read_state("GPU-a")
    assert (found.used_mib, found.processes) == (300.0, (hardware.GpuProcess(7, 1.0),))
    assert (found.memory_mhz, found.memory_max_mhz, found.temperature_c) == (7000, 7001, 61)
    assert (found.power_w, found.power_limit_w) == (120.5, 200.0)
    assert (found.pcie_generation, found.pcie_generation_max, found.pcie_width, found.pcie_width_max) == (1, 4, 8, 16)
    assert found.slowed_by == ("power limit", "heat (hardware)"), "an idle card is not slowed"


def test_what_a_card_does_not_tell_of_its_state_is_none(nvml: FakeNvml) -> None:
    for function in ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetClockInfo", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        nvml.raising[function, 1] = pynvml.NVML_ERROR_NOT_SUPPORTED
    found = hardware.read_state("GPU-b")
    assert (found.power_w, found.graphics_mhz, found.slowed_by) == (None, None, ())
    with pytest.raises(hardware.HardwareError, match="GPU-x is not on this host"):
        hardware.read_state("GPU-x")


def test_the_wrong_distribution_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ModuleType("pynvml")
    wrong.__path__ = ["/site-packages/pynvml"]
    monkeypatch.setitem(sys.modules, "pynvml", wrong)
    with pytest.raises(hardware.HardwareError, match=r"pip uninstall pynvml, then .* nvidia-ml-py"):
        hardware.read_driver()


def test_readings_that_belong_together_have_nvml_opened_until_the_last_one_is_done(nvml: FakeNvml) -> None:
    with hardware.opened():
        hardware.read_gpus()
        assert nvml.open == 1
        hardware.processes("GPU-a")
        assert nvml.open == 1


def test_the_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(hardware.HardwareError, match="nvidia-ml-py is absent"):
        hardware.read_driver()
