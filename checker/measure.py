"""Measure one tier as it runs on this host. Nothing here judges what it reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from checker import exercise, fetched, hardware, llama_server, load, others, ports, residuals, systemd, tls
from checker.evidence import (
    Completion,
    DeviceEvidence,
    EngineId,
    Evidence,
    FrontEvidence,
    HostEvidence,
    Load,
    ModelId,
    Quality,
    Served,
    Thorough,
    TlsEvidence,
    UnitEvidence,
    quality_from_json,
    steps,
    thorough_from_json,
)
from checker.llama_server import BrokenError, Buffers, LlamaServer, LoggedBuffers, ServerError
from checker.others import Others
from checker.systemd import Line, UnitState
from checker.tier import Front, TierSpec, Tls, reached_at, unit_of
from checker.watch import Watch

PROMPT = "Explain quantum computing in simple terms."
# A model without a chat template goes on with a text: of a question alone some make a list of numbers.
PLAIN_PROMPT = f"{PROMPT}\n\nQuantum computing is"
MAX_TOKENS = 200
# Enough to tell language from garbage, little enough to be answered in a second.
QUICK_TOKENS = 32
TEMPERATURE = 0.7
# Fixed, so that the same tier measured twice says the same; other backends still round differently.
SEED = 1

# Long enough for a tier that reaches a quarter of what it promises.
_SLOWEST = 4
_SPARE_S = 60

_UNREAD = HostEvidence(weights_mib=None, kv_mib=None, compute_mib=None)
# Of a card of another host.
_NOBODY = Others(before_mib=None, holders=())


class Depth(str, Enum):
    """How much is measured: a short completion; everything, which keeps the tier busy; or everything once for each run
    of its unit, which is what `AUTO` is."""

    QUICK = "quick"
    AUTO = "auto"
    WHOLE = "whole"


def measure(
    spec: TierSpec, earlier: Iterable[Mapping[str, Any]], depth: Depth, quality: Quality | str | None
) -> Evidence:
    """Measure everything about a tier; what cannot be measured becomes a sentence in `problems`, never an error.

    `earlier` are evidence documents, newest first. One of the same run of the unit tells where the weights went once
    the journal does not tell it any more, and what only a whole measurement finds. `quality` is that of the split
    where it was measured just now, or the sentence why it could not be; else earlier evidence of the command tells.
    """
    problems: list[str] = []
    earlier = [document for document in earlier if document["tier"] == spec.name]
    state, unit = _unit(spec, problems)
    # At once: a tier on demand may be left alone before the end.
    rival_states = _rival_states(spec, unit)
    lines = _printed(spec, state, problems)
    same_run = [document for document in earlier if _is_of_run(document, unit.invocation_id)]
    logged = None if lines is None else _logged(spec, lines, same_run, problems)
    started = None if state is None else load.read(state, lines or [], Path(spec.model.file))
    server = LlamaServer.of(spec)
    # What NVML cannot tell now it is asked again below, and said there.
    loaded = _held(spec, unit.main_pid, [])
    thorough = _carried(same_run)
    anew = depth is Depth.WHOLE or (depth is Depth.AUTO and thorough is None)
    failures: list[str] = []
    served, question, completion = _ask(spec, server, MAX_TOKENS if anew else QUICK_TOKENS, problems, failures)
    # After the completion: a backend may allocate with it. A card that does not answer is what the rest comes of.
    unread: list[str] = []
    held = _held(spec, unit.main_pid, unread)
    if anew:
        thorough = None
        if served is not None and completion is not None and unit.main_pid is not None:
            thorough = _thorough(spec, served, question, unit.main_pid, failures)
    if isinstance(quality, str):
        problems.append(quality)
        quality = None
    named = llama_server.pci_bus_ids(line.text for line in lines or []) or _named_earlier(same_run)
    devices = _devices(spec, logged, loaded, held, others.around(spec, unit.main_pid), named)
    return Evidence(
        tier=spec.name,
        base_url=spec.base_url,
        model=ModelId(spec.model.name, spec.model.sha256),
        engine=EngineId(spec.engine.commit, spec.engine.release),
        placement=spec.placement,
        unit=unit,
        served=served,
        devices=devices,
        host=_host(logged),
        completion=completion,
        problems=tuple(dict.fromkeys([*unread, *problems, *failures])),
        front=front(spec),
        load=_as_first_read(started, same_run),
        thorough=thorough,
        quality=quality or _carried_quality(spec, earlier),
        residuals=residuals.of(devices, thorough.cards if thorough else ()),
        predicted=spec.predicted,
        argv=spec.argv,
        environment=spec.environment,
        residency=spec.residency,
        measured_at=now(),
        rivals=spec.rivals,
        booted_at=booted_at(spec, earlier),
        failures=() if _was_stopped(spec) else tuple(dict.fromkeys(failures)),
        strange_files=strange_files(spec),
        rival_states=rival_states,
    )


def _rival_states(spec: TierSpec, unit: UnitEvidence) -> dict[str, str]:
    """Return the state of each rival's unit while this run of the tier's is active; none when that cannot be told.

    Units are asked one after the other, so the tier's own is asked once more: a switch in between tells nothing.
    """
    try:
        states = {rival: systemd.unit_state(unit_of(rival)).active_state for rival in spec.rivals}
        own = systemd.unit_state(spec.unit)
    except systemd.SystemdError:
        return {}
    stayed = unit.active_state == own.active_state == "active" and own.invocation_id == unit.invocation_id
    return states if stayed else {}


def strange_files(spec: TierSpec) -> tuple[str, ...]:
    """Name the files of a tier's model that are not, by size and time, what was verified when they were fetched."""
    files = load.parts(Path(spec.model.file))
    told = {file: fetched.sha256_of(file) for file in files}
    # Of a model in parts each has a sha256 of its own, which the spec does not hold.
    wanted = spec.model.sha256 if len(files) == 1 else ""
    return tuple(str(file) for file in files if told[file] is None or (wanted and told[file] != wanted))


def _as_first_read(started: Load | None, same_run: Sequence[Mapping[str, Any]]) -> Load | None:
    """Return a load with what its process had read from storage when this run of the unit was first measured.

    The count goes on after the load: what the page cache has dropped of the model is read again with a later answer.
    """
    told = [document["load"]["read_mib"] for document in same_run if document.get("load")]
    return replace(started, read_mib=told[-1]) if started and told and told[-1] is not None else started


def _is_of_run(document: Mapping[str, Any], invocation_id: str) -> bool:
    return bool(invocation_id) and document["unit"].get("invocation_id") == invocation_id


def _carried(same_run: Sequence[Mapping[str, Any]]) -> Thorough | None:
    """Return what was measured whole; what broke off is measured again, for its problems were another report's."""
    told = (thorough_from_json(document.get("thorough")) for document in same_run)
    return next((found for found in told if found and _is_whole(found)), None)


def _is_whole(found: Thorough) -> bool:
    return None not in (found.warm_completion, found.short, found.full, found.stability)


def _of_command(spec: TierSpec, earlier: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the evidence of a tier that ran just this command with just this model."""
    return [
        document
        for document in earlier
        if document["tier"] == spec.name
        and document["model"]["sha256"] == spec.model.sha256
        and document.get("argv") == list(spec.argv)
        and document.get("environment") == spec.environment
    ]


def _carried_quality(spec: TierSpec, earlier: Iterable[Mapping[str, Any]]) -> Quality | None:
    same = _of_command(spec, earlier)
    return next((found for document in same if (found := quality_from_json(document.get("quality")))), None)


def booted_at(spec: TierSpec, earlier: Iterable[Mapping[str, Any]]) -> str | None:
    """Return when a tier was last seen as a boot had left it; `earlier` are evidence documents, newest first.

    A pinned tier serves then, and the port of one on demand is open. None when this command never was.
    """
    with suppress(systemd.SystemdError):
        if systemd.came_with_boot(spec.unit if spec.pinned else Front(spec.name).socket):
            return now()
    return next((told for document in _of_command(spec, earlier) if (told := document.get("booted_at"))), None)


def front(spec: TierSpec) -> FrontEvidence | None:
    """Look at what is before a tier; None when systemd cannot be asked."""
    own = Front(spec.name)
    try:
        strangers = [each for each in ports.listeners(spec.port) if not own.holds_port(each.unit)]
        stands_in = spec.fallback if spec.fallback and systemd.is_active(own.stand_in_socket) else None
        return FrontEvidence(
            socket_state=systemd.unit_state(own.stand_in_socket if stands_in else own.socket).active_state,
            stranger=", ".join(f"{each.name} (pid {each.pid}, {each.unit or 'no unit'})" for each in strangers) or None,
            fallback=stands_in,
            reason=systemd.why_failed(spec.unit) if stands_in else None,
            tls=None if spec.tls is None else handshake(spec.tls),
        )
    except systemd.SystemdError:
        # What the tier's own unit is asked says so.
        return None


def handshake(own: Tls) -> TlsEvidence:
    """Connect to a tier over TLS, and leave."""
    try:
        until = tls.served(reached_at(own.bind), own.port, Path(own.certificate))
    except tls.TlsError as error:
        return TlsEvidence(fault=error.fault.value, said=str(error))
    left = until - datetime.now(timezone.utc)
    return TlsEvidence(until.strftime("%Y-%m-%dT%H:%M:%SZ"), round(left.total_seconds() / 86400, 1))


def _unit(spec: TierSpec, problems: list[str]) -> tuple[UnitState | None, UnitEvidence]:
    try:
        state = systemd.unit_state(spec.unit)
    except systemd.SystemdError as error:
        problems.append(str(error))
        return None, UnitEvidence(active_state="unknown", invocation_id="", main_pid=None, load_s=None)
    try:
        if systemd.has_failed(spec.unit, state):
            problems.append(systemd.why_failed(spec.unit))
    except systemd.SystemdError as error:
        problems.append(str(error))
    load_s = None
    if state.active_state == "active" and 0 < state.started_monotonic_us <= state.active_monotonic_us:
        load_s = round((state.active_monotonic_us - state.started_monotonic_us) / 1e6, 3)
    return state, UnitEvidence(state.active_state, state.invocation_id, state.main_pid, load_s)


def _was_stopped(spec: TierSpec) -> bool:
    """Whether a tier was told to stop, for a rival or by somebody: what it left unanswered is no failure of it."""
    try:
        state = systemd.unit_state(spec.unit)
    except systemd.SystemdError:
        return True
    return state.active_state in ("inactive", "deactivating") and state.result == "success"


def _printed(spec: TierSpec, state: UnitState | None, problems: list[str]) -> list[Line] | None:
    if state is None or not state.invocation_id:
        return None
    try:
        return systemd.printed(spec.unit, state.invocation_id)
    except systemd.SystemdError as error:
        problems.append(str(error))
        return None


def _logged(
    spec: TierSpec, lines: Sequence[Line], same_run: Iterable[Mapping[str, Any]], problems: list[str]
) -> LoggedBuffers | None:
    logged = llama_server.buffers((line.text for line in lines), spec.devices)
    if logged.found:
        return logged
    # A server that runs for weeks outlives what the journal keeps of its start.
    for document in same_run:
        told = _read_earlier(spec, document)
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


def _named_earlier(same_run: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the cards by the engine's names as an earlier evidence of the same run tells, as `pci_bus_ids` does."""
    told = (
        {device["name"]: device["used_pci_bus_id"] for device in document["devices"] if device.get("used_pci_bus_id")}
        for document in same_run
    )
    return next((names for names in told if names), {})


def _buffers(document: Mapping[str, Any]) -> Buffers | None:
    values = [document[key] for key in ("weights_mib", "kv_mib", "compute_mib")]
    return None if None in values else Buffers(*values)


def _ask(
    spec: TierSpec, server: LlamaServer, max_tokens: int, problems: list[str], failures: list[str]
) -> tuple[Served | None, str, Completion | None]:
    """Return what is served, the question as this model takes it, and what was answered."""
    served, question = None, PLAIN_PROMPT
    try:
        server.health()
        props = server.props()
        served = Served(props.model_path, props.alias, props.ctx_size, props.build)
        question = server.as_prompt(PROMPT, props.chat_template, PLAIN_PROMPT)
        return served, question, _complete(spec, server, question, max_tokens)
    except ServerError as error:
        # What is not reached, or does not tell what it serves, may be busy or not have our key.
        (failures if served and isinstance(error, BrokenError) else problems).append(str(error))
        return served, question, None


def _complete(spec: TierSpec, server: LlamaServer, question: str, max_tokens: int) -> Completion:
    timeout_s = _SPARE_S + _SLOWEST * max_tokens / max(spec.criteria.min_generation_tokens_per_second, 1)
    generation = server.complete(question, max_tokens, TEMPERATURE, SEED, timeout_s)
    return Completion(
        prompt=PLAIN_PROMPT if question == PLAIN_PROMPT else PROMPT,
        text=generation.text,
        prompt_tokens=generation.prompt_tokens,
        generated_tokens=generation.generated_tokens,
        prompt_tokens_per_second=_per_second(generation.prompt_tokens, generation.prompt_ms),
        generation_tokens_per_second=_per_second(steps(generation.generated_tokens), generation.generation_ms),
        wall_s=round(generation.wall_s, 3),
    )


def _thorough(spec: TierSpec, served: Served, question: str, pid: int, failures: list[str]) -> Thorough:
    """Measure what keeps the tier busy. It has just answered: whatever it does not answer now is its failure."""
    uuids = list(dict.fromkeys(device.uuid for device in spec.devices))

    def held() -> tuple[float | None, float | None]:
        try:
            on_cards = sum(held_mib(uuid, pid) for uuid in uuids)
        except hardware.HardwareError:
            return exercise.host_mib(pid), None
        return exercise.host_mib(pid), on_cards

    def server() -> LlamaServer:
        return LlamaServer.of(spec)

    measured_at = now()
    warm = None
    with Watch(uuids) as watch:
        try:
            # The first answer of a split model has differed from the later ones.
            warm = _complete(spec, server(), question, MAX_TOKENS)
        except ServerError as error:
            failures.append(str(error))
        exercised = exercise.exercise(
            server, served.ctx_size, spec.placement.parallel, question, SEED, held, failures.append
        )
    return Thorough(
        measured_at=measured_at,
        warm_completion=warm,
        short=exercised.short,
        full=exercised.full,
        stability=exercised.stability,
        cards=watch.seen(pid),
        unread=watch.unread,
    )


def now() -> str:
    """Return the time in UTC as documents have it (2026-10-01T12:00:00Z)."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _per_second(tokens: int, ms: float) -> float:
    return round(tokens / ms * 1000, 3) if ms > 0 else 0.0


def _held(spec: TierSpec, pid: int | None, problems: list[str]) -> dict[str, tuple[hardware.Gpu, float]] | None:
    """Return each card that answers with the MiB that a process holds there, by UUID; None when NVML cannot be read.

    Without a process nothing is held, and a start may be waiting for a card: the tier's own are asked all the same.
    """
    try:
        gpus, reason = hardware.reach(spec.cards)
        if reason:
            problems.append(reason)
        return {} if pid is None else {gpu.uuid: (gpu, held_mib(gpu.uuid, pid)) for gpu in gpus}
    except hardware.HardwareError as error:
        problems.append(str(error))
        return None


def held_mib(uuid: str, pid: int) -> float:
    """Read how many MiB a process holds on a card; HardwareError when the card cannot be asked, or does not tell."""
    held = hardware.held_mib(hardware.processes(uuid), pid)
    if held is None:
        raise hardware.HardwareError(
            f"{uuid}: the driver does not tell how much memory process {pid} holds there: "
            "`nvidia-smi` shows [N/A] for it, as in WSL or where the driver's accounting is not permitted"
        )
    return held


def _devices(
    spec: TierSpec,
    logged: LoggedBuffers | None,
    loaded: dict[str, tuple[hardware.Gpu, float]] | None,
    held: dict[str, tuple[hardware.Gpu, float]] | None,
    around: Mapping[str, Others],
    named: Mapping[str, str],
) -> tuple[DeviceEvidence, ...]:
    found = []
    for index, device in enumerate(spec.devices):
        buffers = _UNREAD if logged is None else logged.devices[index]
        # Absent from what NVML lists is not 0: the card is lost or gone.
        here = (held or {}).get(device.uuid)
        first = (loaded or {}).get(device.uuid)
        beside = around.get(device.uuid, _NOBODY)
        found.append(
            DeviceEvidence(
                name=device.name,
                uuid=device.uuid,
                gpu=device.gpu,
                predicted_weights_mib=device.weights_mib,
                weights_mib=buffers.weights_mib,
                kv_mib=buffers.kv_mib,
                compute_mib=buffers.compute_mib,
                process_mib=here[1] if here else None,
                predicted_kv_mib=device.kv_mib,
                predicted_compute_mib=device.compute_mib,
                predicted_overhead_mib=device.overhead_mib,
                loaded_mib=first[1] if first else None,
                others_mib=max(0.0, round(here[0].used_mib - here[1], 2)) if here else None,
                pci_bus_id=here[0].pci_bus_id if here else None,
                used_pci_bus_id=named.get(device.name),
                compute_capability=here[0].compute_capability if here else None,
                before_mib=beside.before_mib,
                others=beside.holders,
            )
        )
    for name, buffers in (logged.others if logged else {}).items():
        found.append(DeviceEvidence(name, "", "", 0.0, buffers.weights_mib, buffers.kv_mib, buffers.compute_mib, None))
    expected = {device.uuid for device in spec.devices}
    for uuid, (gpu, mib) in (held or {}).items():
        if uuid not in expected and mib > 0:
            found.append(DeviceEvidence("", uuid, gpu.name, 0.0, None, None, None, mib))
    return tuple(found)


def _host(logged: LoggedBuffers | None) -> HostEvidence:
    if logged is None:
        return _UNREAD
    return HostEvidence(logged.host.weights_mib, logged.host.kv_mib, logged.host.compute_mib)
