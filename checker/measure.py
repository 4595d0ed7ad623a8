"""Measure one tier as it runs on this host. Nothing here judges what it reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from checker import hardware, llama_server, systemd
from checker.evidence import (
    Completion,
    DeviceEvidence,
    EngineId,
    Evidence,
    HostEvidence,
    ModelId,
    Served,
    UnitEvidence,
)
from checker.llama_server import Buffers, LlamaServer, LoggedBuffers, ServerError
from checker.tier import TierSpec

PROMPT = "Explain quantum computing in simple terms."
MAX_TOKENS = 200
TEMPERATURE = 0.7
# Fixed, so that the same tier measured twice says the same; other backends still round differently.
SEED = 1

# Long enough for a tier that reaches a quarter of what it promises.
_SLOWEST = 4
_SPARE_S = 60

_UNREAD = HostEvidence(weights_mib=None, kv_mib=None, compute_mib=None)


def measure(spec: TierSpec, earlier: Iterable[Mapping[str, Any]] = ()) -> Evidence:
    """Measure everything about a tier; what cannot be measured becomes a sentence in `problems`, never an error.

    `earlier` are evidence documents, newest first; one of the same run of the unit tells where the weights went once
    the journal does not tell it any more.
    """
    problems: list[str] = []
    state, unit = _unit(spec, problems)
    logged = _logged(spec, state, earlier, problems)
    server = LlamaServer(spec.base_url, spec.key_file)
    served, completion = _ask(spec, server, problems)
    # After the completion: a backend may allocate with the first one.
    held = _held(unit.main_pid, problems)
    return Evidence(
        tier=spec.name,
        base_url=spec.base_url,
        model=ModelId(spec.model.name, spec.model.sha256),
        engine=EngineId(spec.engine.commit, spec.engine.release),
        placement=spec.placement,
        unit=unit,
        served=served,
        devices=_devices(spec, logged, held),
        host=_host(logged),
        completion=completion,
        problems=tuple(problems),
    )


def _unit(spec: TierSpec, problems: list[str]) -> tuple[systemd.UnitState | None, UnitEvidence]:
    try:
        state = systemd.unit_state(spec.unit)
    except systemd.SystemdError as error:
        problems.append(str(error))
        return None, UnitEvidence(active_state="unknown", invocation_id="", main_pid=None, load_s=None)
    load_s = None
    if state.active_state == "active" and 0 < state.started_monotonic_us <= state.active_monotonic_us:
        load_s = round((state.active_monotonic_us - state.started_monotonic_us) / 1e6, 3)
    return state, UnitEvidence(state.active_state, state.invocation_id, state.main_pid, load_s)


def _logged(
    spec: TierSpec, state: systemd.UnitState | None, earlier: Iterable[Mapping[str, Any]], problems: list[str]
) -> LoggedBuffers | None:
    if state is None or not state.invocation_id:
        return None
    try:
        lines = systemd.journal(spec.unit, state.invocation_id)
    except systemd.SystemdError as error:
        problems.append(str(error))
        return None
    logged = llama_server.buffers(lines, spec.devices)
    if logged.found:
        return logged
    # A server that runs for weeks outlives what the journal keeps of its start.
    for evidence in earlier:
        if evidence["tier"] == spec.name and evidence["unit"].get("invocation_id") == state.invocation_id:
            told = _read_earlier(spec, evidence)
            if told is not None:
                return told
    problems.append(
        f"the journal of {spec.unit} does not tell where this run put the weights (not loaded yet, or vacuumed since): "
        f"systemctl restart {spec.unit} has them logged anew"
    )
    return None


def _read_earlier(spec: TierSpec, evidence: Mapping[str, Any]) -> LoggedBuffers | None:
    """Return the buffers in an earlier evidence of the same run of the unit, None when they could not be read then."""
    found = [(device["name"], device["uuid"], _buffers(device)) for device in evidence["devices"]]
    count = len(spec.devices)
    host = _buffers(evidence["host"])
    own = [buffers for _, _, buffers in found[:count] if buffers is not None]
    if host is None or len(own) < count:
        return None
    others = {name: buffers for name, uuid, buffers in found[count:] if not uuid and buffers is not None}
    return LoggedBuffers(devices=tuple(own), host=host, others=others, found=True)


def _buffers(document: Mapping[str, Any]) -> Buffers | None:
    values = [document[key] for key in ("weights_mib", "kv_mib", "compute_mib")]
    return None if None in values else Buffers(*values)


def _ask(spec: TierSpec, server: LlamaServer, problems: list[str]) -> tuple[Served | None, Completion | None]:
    served = None
    try:
        server.health()
        props = server.props()
        served = Served(props.model_path, props.alias, props.ctx_size, props.build)
        prompt = server.as_prompt(PROMPT, props.chat_template)
        timeout_s = _SPARE_S + _SLOWEST * MAX_TOKENS / max(spec.criteria.min_generation_tokens_per_second, 1)
        generation = server.complete(prompt, MAX_TOKENS, TEMPERATURE, SEED, timeout_s)
    except ServerError as error:
        problems.append(str(error))
        return served, None
    return served, Completion(
        prompt=PROMPT,
        text=generation.text,
        prompt_tokens=generation.prompt_tokens,
        generated_tokens=generation.generated_tokens,
        prompt_tokens_per_second=_per_second(generation.prompt_tokens, generation.prompt_ms),
        generation_tokens_per_second=_per_second(generation.generated_tokens, generation.generation_ms),
        wall_s=round(generation.wall_s, 3),
    )


def _per_second(tokens: int, ms: float) -> float:
    return round(tokens / ms * 1000, 3) if ms > 0 else 0.0


def _held(pid: int | None, problems: list[str]) -> dict[str, tuple[str, float]] | None:
    """Return name of the card and MiB that a process holds there, by UUID; None when NVML cannot be read."""
    if pid is None:
        return {}
    try:
        return {gpu.uuid: (gpu.name, held_mib(gpu.uuid, pid)) for gpu in _answering_gpus()}
    except hardware.HardwareError as error:
        problems.append(str(error))
        return None


def _answering_gpus() -> Sequence[hardware.Gpu]:
    try:
        return hardware.read_gpus()
    except hardware.GpuLostError as error:
        return error.found


def held_mib(uuid: str, pid: int) -> float:
    """Read how many MiB a process holds on a card; HardwareError when the card cannot be asked, or does not tell."""
    held = 0.0
    for process in hardware.processes(uuid):
        if process.pid == pid and process.used_mib is None:
            raise hardware.HardwareError(
                f"{uuid}: the driver does not tell how much memory process {pid} holds there: "
                "`nvidia-smi` shows [N/A] for it, as in WSL or where the driver's accounting is not permitted"
            )
        if process.pid == pid:
            held += process.used_mib or 0
    return round(held, 2)


def _devices(
    spec: TierSpec, logged: LoggedBuffers | None, held: dict[str, tuple[str, float]] | None
) -> tuple[DeviceEvidence, ...]:
    found = []
    for index, device in enumerate(spec.devices):
        buffers = _UNREAD if logged is None else logged.devices[index]
        found.append(
            DeviceEvidence(
                name=device.name,
                uuid=device.uuid,
                gpu=device.gpu,
                predicted_weights_mib=device.weights_mib,
                weights_mib=buffers.weights_mib,
                kv_mib=buffers.kv_mib,
                compute_mib=buffers.compute_mib,
                # Absent from what NVML lists is not 0: the card is lost or gone.
                process_mib=held[device.uuid][1] if held and device.uuid in held else None,
            )
        )
    for name, buffers in (logged.others if logged else {}).items():
        found.append(DeviceEvidence(name, "", "", 0.0, buffers.weights_mib, buffers.kv_mib, buffers.compute_mib, None))
    expected = {device.uuid for device in spec.devices}
    for uuid, (name, mib) in (held or {}).items():
        if uuid not in expected and mib > 0:
            found.append(DeviceEvidence("", uuid, name, 0.0, None, None, None, mib))
    return tuple(found)


def _host(logged: LoggedBuffers | None) -> HostEvidence:
    if logged is None:
        return _UNREAD
    return HostEvidence(logged.host.weights_mib, logged.host.kv_mib, logged.host.compute_mib)
