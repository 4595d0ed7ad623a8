"""GPUs of this host through NVML: the only module that imports `pynvml` (distribution nvidia-ml-py).

Every reading opens NVML and closes it again, so that a long-lived process sees a card that comes back; several that
belong together go into one `opened()`. Nothing here judges what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MIB = 1024 * 1024
_LOST = (
    "the GPU is lost (the driver lists it and cannot reach it); look for 'Xid' in the kernel log, power the "
    "host off and on, and reseat the card and its power connectors if that does not bring it back"
)


@dataclass(frozen=True)
class Gpu:
    """One card as NVML reads it now.

    `pci_bus_id` is NVML's form (00000000:01:00.0), `compute_capability` "major.minor", memory in MiB.
    `used_mib` of an idle card is not 0: it counts what the driver reserves. `bandwidth_gb_s` (10^9 bytes a second) and
    `minor_number` (N of /dev/nvidiaN) are None where the driver does not tell them.
    """

    name: str
    uuid: str
    pci_bus_id: str
    compute_capability: str
    total_mib: int
    used_mib: int
    bandwidth_gb_s: float | None
    minor_number: int | None


@dataclass(frozen=True)
class Driver:
    """Version of the NVIDIA driver ("580.126.09") and the newest CUDA that it serves ("13.0")."""

    version: str
    cuda_version: str


@dataclass(frozen=True)
class GpuProcess:
    """A process of this host and the memory that it holds on one card, in MiB; None where the driver does not tell."""

    pid: int
    used_mib: float | None


@dataclass(frozen=True)
class CardState:
    """What a card does at this moment; None is "the driver does not tell".

    `used_mib` is all that is in use on it. Clocks in MHz (graphics and memory), power in W, temperature in degrees
    Celsius, PCIe generation and lanes, each now and at most (of card and slot together). `slowed_by` are the driver's
    reasons for a lower clock while there is work.
    """

    uuid: str
    used_mib: float
    processes: tuple[GpuProcess, ...]
    graphics_mhz: int | None
    graphics_max_mhz: int | None
    memory_mhz: int | None
    memory_max_mhz: int | None
    power_w: float | None
    power_limit_w: float | None
    temperature_c: int | None
    pcie_generation: int | None
    pcie_generation_max: int | None
    pcie_width: int | None
    pcie_width_max: int | None
    slowed_by: tuple[str, ...]


# nvmlClocksEventReasons (nvml.h); "idle" is none of them.
_SLOWED_BY = {
    0x2: "clocks set by an application",
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x10: "clocks kept in step with other cards",
    0x20: "heat (driver)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}


class HardwareError(Exception):
    """NVML cannot answer; the message says why and what to do about it."""


class GpuLostError(HardwareError):
    """Cards that the driver lists and cannot reach: `lost` names them, `found` are the cards that answer."""

    def __init__(self, lost: tuple[str, ...], found: tuple[Gpu, ...]) -> None:
        self.lost = lost
        self.found = found
        answering = ", ".join(f"{gpu.uuid} ({gpu.name})" for gpu in found) or "none"
        super().__init__(f"{', '.join(lost)}: {_LOST}. GPUs that answer: {answering}")


@contextmanager
def opened() -> Iterator[None]:
    """Keep NVML open for the readings of the block; HardwareError if it cannot be opened.

    A start waits while it is opened. NVML counts who has: a reading inside opens it once more, which costs nothing.
    """
    with _nvml():
        yield


def read_driver() -> Driver:
    """Read the driver's version and CUDA version; HardwareError when NVML cannot be opened."""
    with _nvml() as nvml:
        cuda = int(nvml.nvmlSystemGetCudaDriverVersion())
        return Driver(nvml.nvmlSystemGetDriverVersion(), f"{cuda // 1000}.{cuda % 1000 // 10}")


def read_gpus() -> tuple[Gpu, ...]:
    """Read every card, in NVML's order (which is not an identity: use the UUID).

    GpuLostError when a card is lost, after all the others were read (its `found`); HardwareError when NVML
    cannot be opened or a card does not tell who it is.
    """
    with _nvml() as nvml:
        cards = [_read_card(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    found = tuple(card for card in cards if isinstance(card, Gpu))
    lost = tuple(card for card in cards if isinstance(card, str))
    if lost:
        raise GpuLostError(lost, found)
    return found


def answering_gpus() -> tuple[Gpu, ...]:
    """Read the cards of this host without those that are lost; HardwareError when NVML cannot be read."""
    try:
        return read_gpus()
    except GpuLostError as error:
        return error.found


def reach(uuids: Collection[str]) -> tuple[tuple[Gpu, ...], str | None]:
    """Read the cards that answer, and say why some of those named do not; None when all of them do.

    HardwareError when NVML cannot be read.
    """
    try:
        gpus = read_gpus()
    except GpuLostError as error:
        if any(uuid in error.lost for uuid in uuids):
            return error.found, str(error)
        gpus = error.found
    found = [gpu.uuid for gpu in gpus]
    gone = [uuid for uuid in uuids if uuid not in found]
    if not gone:
        return gpus, None
    return gpus, f"{', '.join(gone)} is gone, found {', '.join(found) or 'no card'}: plan again"


def held_mib(found: Iterable[GpuProcess], pid: int) -> float | None:
    """Return how many MiB a process holds on the card of these processes; None when the driver does not tell."""
    held = [process.used_mib for process in found if process.pid == pid]
    return None if None in held else round(sum((mib or 0.0 for mib in held), 0.0), 2)


def processes(uuid: str) -> tuple[GpuProcess, ...]:
    """Read the compute processes on one card, by pid.

    HardwareError when there is no such card, naming those that are there, or when it is lost.
    """
    with _nvml() as nvml, _card_of(nvml, uuid) as handle:
        return _read_processes(nvml, handle)


def read_state(uuid: str) -> CardState:
    """Read what one card does now; HardwareError as with `processes`."""
    with _nvml() as nvml, _card_of(nvml, uuid) as handle:
        power_mw = _if_told(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
        power_limit_mw = _if_told(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        # The name of before driver 535, which every driver knows.
        reasons = _if_told(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
        return CardState(
            uuid=uuid,
            used_mib=int(nvml.nvmlDeviceGetMemoryInfo(handle).used) / MIB,
            processes=_read_processes(nvml, handle),
            graphics_mhz=_if_told(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_GRAPHICS),
            graphics_max_mhz=_if_told(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_GRAPHICS),
            memory_mhz=_if_told(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
            memory_max_mhz=_if_told(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM),
            power_w=None if power_mw is None else power_mw / 1000,
            power_limit_w=None if power_limit_mw is None else power_limit_mw / 1000,
            temperature_c=_if_told(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            pcie_generation=_if_told(nvml, nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
            pcie_generation_max=_if_told(nvml, nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
            pcie_width=_if_told(nvml, nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
            pcie_width_max=_if_told(nvml, nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
            slowed_by=tuple(word for bit, word in _SLOWED_BY.items() if reasons & bit),
        )


@contextmanager
def _card_of(nvml: Any, uuid: str) -> Iterator[Any]:
    """Find a card for the block; HardwareError when it is not there, naming those that are, or when it is lost."""
    try:
        yield nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError_GpuIsLost:
        raise HardwareError(f"{uuid}: {_LOST}") from None
    except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
        present = ", ".join(gpu.uuid for gpu in read_gpus()) or "none"
        raise HardwareError(f"GPU {uuid} is not on this host; found: {present}") from None


def _read_processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...]:
    running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    held = [GpuProcess(p.pid, None if p.usedGpuMemory is None else p.usedGpuMemory / MIB) for p in running]
    return tuple(sorted(held, key=lambda process: (process.pid, process.used_mib or 0)))


def _read_card(nvml: Any, index: int) -> Gpu | str:
    """Return the card, or what to call it when it is lost."""
    try:
        return _read_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
    except nvml.NVMLError_GpuIsLost:
        pass
    try:
        return str(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index)))
    except nvml.NVMLError:
        return f"the card at NVML index {index}"


def _read_gpu(nvml: Any, handle: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    bus_width_bit = _if_told(nvml, nvml.nvmlDeviceGetMemoryBusWidth, handle)
    clock_mhz = _if_told(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM)
    # Two transfers a clock: gives the datasheet's figure for GDDR5, GDDR6 and HBM alike.
    bandwidth_gb_s = round(bus_width_bit / 8 * clock_mhz * 2 / 1000, 1) if bus_width_bit and clock_mhz else None
    return Gpu(
        name=nvml.nvmlDeviceGetName(handle),
        uuid=nvml.nvmlDeviceGetUUID(handle),
        pci_bus_id=nvml.nvmlDeviceGetPciInfo(handle).busId,
        compute_capability=f"{major}.{minor}",
        total_mib=int(memory.total) // MIB,
        used_mib=int(memory.used) // MIB,
        bandwidth_gb_s=bandwidth_gb_s,
        minor_number=_if_told(nvml, nvml.nvmlDeviceGetMinorNumber, handle),
    )


def _if_told(nvml: Any, read: Callable[..., int], *arguments: Any) -> int | None:
    try:
        return int(read(*arguments))
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
        return None


def _import_pynvml() -> Any:
    try:
        import pynvml
    except ImportError:
        raise HardwareError(
            "Python package nvidia-ml-py is absent: run this with the checker's own interpreter, or install "
            "nvidia-ml-py beside it"
        ) from None
    # nvidia-ml-py is one file; the abandoned distribution `pynvml` puts a package of the same name over it.
    if hasattr(pynvml, "__path__"):
        raise HardwareError(
            f"{next(iter(pynvml.__path__))} belongs to the distribution 'pynvml', which hides NVIDIA's own: "
            "pip uninstall pynvml, then pip install --force-reinstall nvidia-ml-py"
        )
    return pynvml


@contextmanager
def _nvml() -> Iterator[Any]:
    """Open NVML for the block; every NVMLError that leaves it becomes a HardwareError that names the fix."""
    nvml: Any = _import_pynvml()
    try:
        nvml.nvmlInit()
        try:
            yield nvml
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise HardwareError(_explain(nvml, error)) from error


def _explain(nvml: Any, error: Any) -> str:
    fixes = {
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
            "the NVIDIA driver is not installed (libnvidia-ml.so.1 is absent): install the driver"
        ),
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            "driver/library version mismatch: the driver's libraries were upgraded while the older kernel "
            "module stayed loaded; reboot the host, or stop what uses the GPUs and reload the nvidia modules"
        ),
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: (
            "the NVIDIA kernel module is not loaded: modprobe nvidia; when that fails the kernel log says "
            "why (no headers for this kernel, Secure Boot, a card that this driver branch no longer serves)"
        ),
        nvml.NVML_ERROR_NO_PERMISSION: (
            "no permission to use the NVIDIA driver: run as root, or as a user that may open /dev/nvidiactl "
            "and /dev/nvidia0, /dev/nvidia1, ..."
        ),
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND: (
            "the NVIDIA driver is too old for a reading that is needed: install driver 535 or later"
        ),
    }
    return fixes.get(error.value, f"NVML says: {error}")
