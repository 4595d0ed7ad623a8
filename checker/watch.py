"""Watch cards while a tier works: memory of its process, clocks, power, heat and link, as NVML tells them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from statistics import median
from types import TracebackType

from checker import hardware
from checker.evidence import CardLoad
from checker.hardware import CardState

# A driver answers in a few milliseconds; an allocation by a prompt stays (CUDA's pools do not shrink).
_PERIOD_S = 0.25


class Watch:
    """Sample cards from entry to exit of a `with` block, the last time at its end.

    A card that cannot be read is asked no more, the others are.
    """

    def __init__(self, uuids: Sequence[str]) -> None:
        self._uuids = tuple(dict.fromkeys(uuids))
        self._samples: list[CardState] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._unread: dict[str, str] = {}

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._sample()

    @property
    def unread(self) -> tuple[str, ...]:
        """One sentence for each reason why a card could not be read to the end; none when all could."""
        return tuple(dict.fromkeys(self._unread.values()))

    def seen(self, pid: int) -> tuple[CardLoad, ...]:
        """Return what was seen of each card, with the memory of one process."""
        return tuple(summarise(uuid, [s for s in self._samples if s.uuid == uuid], pid) for uuid in self._uuids)

    def _run(self) -> None:
        self._sample()
        while not self._done.wait(_PERIOD_S):
            self._sample()

    def _sample(self) -> None:
        for uuid in self._uuids:
            if uuid in self._unread:
                continue
            try:
                self._samples.append(hardware.read_state(uuid))
            except hardware.HardwareError as error:
                self._unread[uuid] = str(error)


def summarise(uuid: str, samples: Sequence[CardState], pid: int) -> CardLoad:
    """Return what some samples of one card come to; pure."""

    def told(name: str) -> list[float]:
        return [value for sample in samples if (value := getattr(sample, name)) is not None]

    def middle(name: str) -> float | None:
        return float(median(told(name))) if told(name) else None

    def most(name: str) -> float | None:
        return max(told(name), default=None)

    def whole(name: str) -> int | None:
        highest = most(name)
        return None if highest is None else int(highest)

    held = [hardware.held_mib(sample.processes, pid) for sample in samples]
    return CardLoad(
        uuid=uuid,
        peak_mib=max((mib for mib in held if mib is not None), default=None),
        graphics_mhz=middle("graphics_mhz"),
        graphics_max_mhz=most("graphics_max_mhz"),
        memory_mhz=middle("memory_mhz"),
        memory_max_mhz=most("memory_max_mhz"),
        power_w=most("power_w"),
        power_limit_w=most("power_limit_w"),
        temperature_c=most("temperature_c"),
        # An idle card trains its link down: only the highest tells what the slot gives.
        pcie_generation=whole("pcie_generation"),
        pcie_generation_max=whole("pcie_generation_max"),
        pcie_width=whole("pcie_width"),
        pcie_width_max=whole("pcie_width_max"),
        slowed_by=tuple(dict.fromkeys(word for sample in samples for word in sample.slowed_by)),
    )
