"""Readiness of one tier: `ExecStartPost=` of its unit, so that "active" means that it answers from its own GPUs.

Runs inside the unit's sandbox as the unprivileged user: no journal, and of /proc its own processes alone.
"""

from __future__ import annotations

import os
import sys
import time

from checker import hardware, memory_verdict, systemd, tier, verdict, whole
from checker.evidence import Served
from checker.llama_server import BrokenError, LlamaServer, LoadingError, ServerError, UnreachableError
from checker.measure import PROMPT, SEED, held_mib

_POLL_S = 0.1


def ready(name: str, main_pid: int | None) -> str | None:
    """Wait until a tier is ready and return None, or return the reason why it will not be, in one line.

    `main_pid` is the unit's main process. There is no limit to the wait but the end of that process: systemd's
    TimeoutStartSec is the limit.
    """
    try:
        spec = tier.load(name)
    except tier.TierSpecError as error:
        return str(error)
    if main_pid is None:
        return f"MAINPID is not set: systemd runs this when it starts {spec.unit}; by hand use: checker verify"
    server = LlamaServer.of(spec)
    try:
        fault = _wait_for_health(spec, server, main_pid) or _prove(spec, server, main_pid)
        if fault is None:
            # A load is no service: what a tier serves at least counts from here (checker.drain).
            whole.write(spec.ready_file, f"{time.monotonic()}\n", 0o640)
    except (ServerError, hardware.HardwareError, OSError) as error:
        return str(error)
    return fault


def _wait_for_health(spec: tier.TierSpec, server: LlamaServer, main_pid: int) -> str | None:
    while True:
        broken = None
        try:
            server.health()
        except (UnreachableError, LoadingError):
            pass
        except BrokenError as error:
            broken = str(error)
        else:
            # A stranger on the port answers as well while our own server dies of "address in use".
            return None if _alive(main_pid) else _gone(spec)
        time.sleep(_POLL_S)
        if not _alive(main_pid):
            return _gone(spec)
        if broken:
            return broken


def _gone(spec: tier.TierSpec) -> str:
    return f"{systemd.ENDED}: journalctl -u {spec.unit} says why"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _prove(spec: tier.TierSpec, server: LlamaServer, main_pid: int) -> str | None:
    props = server.props()
    served = Served(props.model_path, props.alias, props.ctx_size, props.build)
    faults = verdict.model_faults(spec, served)
    # A first pass over cold weights takes as long as a load; a backend may allocate with it, so memory comes after.
    server.complete(PROMPT, max_tokens=1, temperature=0, seed=SEED, timeout_s=spec.criteria.max_load_s)
    with hardware.opened():
        held = {uuid: held_mib(uuid, main_pid) for uuid in dict.fromkeys(device.uuid for device in spec.devices)}
        strays = _strays(spec, main_pid)
    return "; ".join([*faults, *memory_verdict.memory_faults(spec, held), *strays]) or None


def _strays(spec: tier.TierSpec, main_pid: int) -> list[str]:
    try:
        gpus = hardware.answering_gpus()
    except hardware.HardwareError:
        # A card out of this sandbox's reach is out of the server's reach too.
        return []
    own = {device.uuid for device in spec.devices}
    held = {gpu: held_mib(gpu.uuid, main_pid) for gpu in gpus if gpu.uuid not in own}
    return [
        f"{spec.name}: holds {mib:,.1f} MiB on {gpu.uuid} ({gpu.name}), which is not its own: "
        f"check --device and DeviceAllow of {spec.unit}"
        for gpu, mib in held.items()
        if mib > 0
    ]


def main(name: str) -> int:
    """Wait for a tier as its unit's ExecStartPost; return the exit code, with the reason on stderr when it is not 0."""
    reason = ready(name, int(os.environ.get("MAINPID") or 0) or None)
    if reason is None:
        return 0
    print(f"not ready: {reason}", file=sys.stderr)
    return 1
