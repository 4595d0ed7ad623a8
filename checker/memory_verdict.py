"""Hold the memory of a tier on its cards against the plan, the engine's own breakdown and the driver. Pure; MiB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from checker import residuals
from checker.evidence import CardLoad, Check, DeviceEvidence, Evidence, Residual
from checker.findings import Finding, expected_devices, mib
from checker.tier import TierSpec

_WEIGHTS_SLACK_MIB = 1.0
_WEIGHTS_SLACK_SHARE = 0.01
# What gguf-parser claims for its own estimates; and what leaves a plan's margins no meaning any more.
_GOOD_MIB = 100.0
_RECALIBRATE_MIB = 300.0
# More than what CUDA takes beside the engine's buffers can be off where nobody has measured it (the priors are 120 to
# 615 MiB, checker.memory): some layers of another card. What is less, verification finds.
_TOO_MUCH_MIB = 1024.0


def findings(spec: TierSpec, evidence: Evidence) -> Iterator[Finding]:
    """Yield every check of which cards are used, and of memory on cards and host."""
    yield from _right_cards(spec, evidence)
    yield from _weights(spec, evidence)
    yield from _kv(spec, evidence)
    yield _nothing_elsewhere(spec, evidence)
    yield from _host_weights(spec, evidence)
    yield from _held(spec, evidence)
    yield from _against_the_plan(spec, evidence)
    yield from _peak_is_known(spec, evidence)


def _right_cards(spec: TierSpec, evidence: Evidence) -> Iterator[Finding]:
    """Yield a check of each device whose card the engine names: it does of those that it reaches itself, not by RPC."""
    for found, device in zip(expected_devices(spec, evidence), spec.devices, strict=True):
        if found.pci_bus_id is None or (device.rpc_endpoint and found.used_pci_bus_id is None):
            # A card that NVML does not tell of has failed for that.
            continue
        wanted, used = _address(found.pci_bus_id), found.used_pci_bus_id and _address(found.used_pci_bus_id)
        planned = f"planned is {found.uuid} ({found.gpu}) at {wanted}"
        if used is None:
            reason = (
                f"the log of {spec.unit} does not tell which card the engine's {found.name} is, {planned}: "
                f"systemctl restart {spec.unit} has it logged anew"
            )
        else:
            reason = (
                f"the engine's {found.name} is the card at {used}, {planned}: the cards are swapped; "
                f"compare CUDA_VISIBLE_DEVICES of {spec.unit} with the inventory"
            )
        yield Finding(
            Check(f"card of {found.name}", used == wanted, wanted, used or "could not be read"),
            f"{spec.name}: {reason}",
        )


def _address(pci_bus_id: str) -> str:
    """Return a PCI address in one form: NVML writes eight digits of the domain, the engine four."""
    domain, _, rest = pci_bus_id.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def _weights(spec: TierSpec, evidence: Evidence) -> Iterator[Finding]:
    for found in expected_devices(spec, evidence):
        predicted, measured = found.predicted_weights_mib, found.weights_mib
        if predicted is None:
            passed = measured is not None and measured > 0
        else:
            passed = measured is not None and abs(measured - predicted) <= _slack(predicted)
        planned = "more than 0 MiB" if predicted is None else mib(predicted)
        yield Finding(
            Check(f"weights on {found.name}", passed, planned, mib(measured)),
            f"{spec.name}: the engine put {mib(measured)} of weights on {found.uuid} ({found.gpu}), planned are "
            f"{planned}: compare --tensor-split and --device of {spec.unit} with the inventory, "
            "then run site.yml again",
        )


def _kv(spec: TierSpec, evidence: Evidence) -> Iterator[Finding]:
    """Yield a check of the KV cache on each device: that of layers on the CPU is planned to be in host memory."""
    on_host = f" ({mib(evidence.host.kv_mib)} of it are in host memory)" if evidence.host.kv_mib else ""
    for found in expected_devices(spec, evidence):
        predicted, measured = found.predicted_kv_mib, found.kv_mib
        # Where the log is not known the weights have failed for that.
        if predicted is None or measured is None:
            continue
        yield Finding(
            Check(
                f"KV cache on {found.name}",
                abs(measured - predicted) <= _slack(predicted),
                mib(predicted),
                mib(measured),
            ),
            f"{spec.name}: the engine put {mib(measured)} of KV cache on {found.uuid} ({found.gpu}), planned are "
            f"{mib(predicted)}{on_host}: compare --ctx-size, --cache-type-k, --cache-type-v and --no-kv-offload of "
            f"{spec.unit} with the inventory, then run site.yml again",
        )


def _nothing_elsewhere(spec: TierSpec, evidence: Evidence) -> Finding:
    named = {device.name for device in spec.devices}
    uuids = {device.uuid for device in spec.devices}
    strays = [found for found in evidence.devices if found.name not in named or found.uuid not in uuids]
    read = bool(strays) or all(found.process_mib is not None for found in evidence.devices)
    places = ", ".join(
        f"{found.uuid or found.name} ({found.gpu or 'no card of the plan'}, "
        f"{mib(_most(found.process_mib, found.weights_mib, found.kv_mib, found.compute_mib))})"
        for found in strays
    )
    measured = places or ("nothing" if read else "could not be read")
    return Finding(
        Check("nothing on other devices", read and not strays, "nothing", measured),
        f"{spec.name}: is on devices that are not its own: {places}: check --device and DeviceAllow of {spec.unit}"
        if strays
        else f"{spec.name}: which devices its process uses could not be read",
    )


def _most(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _host_weights(spec: TierSpec, evidence: Evidence) -> Iterator[Finding]:
    if spec.host_weights_mib is None:
        return
    measured = evidence.host.weights_mib
    limit = spec.host_weights_mib + _WEIGHTS_SLACK_MIB
    yield Finding(
        Check(
            "weights in host memory", measured is not None and measured <= limit, f"at most {mib(limit)}", mib(measured)
        ),
        f"{spec.name}: {mib(measured)} of weights are in host memory, planned are {mib(spec.host_weights_mib)}: "
        f"layers fell to the CPU; compare --n-gpu-layers and --device of {spec.unit} with the inventory",
    )


def _held(spec: TierSpec, evidence: Evidence) -> Iterator[Finding]:
    found = expected_devices(spec, evidence)
    for uuid in dict.fromkeys(device.uuid for device in found):
        here = [device for device in found if device.uuid == uuid]
        gpu, held = here[0].gpu, here[0].process_mib
        logged = sum((device.weights_mib or 0) + (device.kv_mib or 0) for device in here)
        needed = max(logged - _WEIGHTS_SLACK_MIB, 0)
        passed = held is not None and held > 0 and held >= needed
        if held is None:
            reason = f"what it holds on {uuid} ({gpu}) could not be read from NVML"
        elif held == 0:
            reason = _holds_nothing(spec, uuid, gpu)
        else:
            reason = (
                f"holds {mib(held)} on {uuid} ({gpu}), the engine logged {mib(logged)} of weights and KV cache: "
                "the driver has moved memory off the card, or the log is of another run; "
                f"systemctl restart {spec.unit}{_fuller(here[0])}"
            )
        expected = f"at least {mib(logged)}" if logged else "more than 0"
        yield Finding(Check(f"memory held on {uuid}", passed, expected, mib(held)), f"{spec.name}: {reason}")


def _against_the_plan(spec: TierSpec, evidence: Evidence) -> Iterator[Finding]:
    found = expected_devices(spec, evidence)
    cards: tuple[CardLoad, ...] = evidence.thorough.cards if evidence.thorough else ()
    remedy, learned = (
        "run site.yml again with -e llama_tiers_replan=true, which plans with what was measured",
        "the next plan reckons with what was measured",
    )
    if spec.placement.split_mode == "tensor":
        remedy = learned = "no plan learns from split mode tensor: give the cards a larger margin_mib"
    for residual in residuals.of(found, cards):
        here = [device for device in found if device.uuid == residual.uuid]
        planned, held = residual.planned_mib, residual.held_mib
        # A card that holds nothing, or cannot be read, has failed its own check.
        if planned is None or not held:
            continue
        far = abs(held - planned)
        said = (
            f"{spec.name}: holds {mib(held)} on {residual.uuid} ({residual.gpu}) at its peak, planned are "
            f"{mib(planned)} ({_terms(residual)}{_fuller(here[0]) if held < planned else ''})"
        )
        yield Finding(
            Check(
                f"memory as planned on {residual.uuid}",
                far <= _RECALIBRATE_MIB,
                f"{mib(planned)}, within {_RECALIBRATE_MIB:g}",
                f"{mib(held)} = {_parts(here, held)}",
            ),
            f"{said}: more than {_RECALIBRATE_MIB:g} MiB apart, so the plan's margin means nothing; {remedy}",
            note=f"{said}: more than {_GOOD_MIB:g} MiB apart; {learned}" if far > _GOOD_MIB else "",
        )


def _peak_is_known(spec: TierSpec, evidence: Evidence) -> Iterator[Finding]:
    if evidence.thorough is None:
        return
    unread = "; ".join(evidence.thorough.unread)
    yield Finding(
        Check("cards read under load", not unread, "to the end", unread or "to the end"),
        f"{spec.name}: while it worked, a card could not be read to the end, so the most that it holds there is not "
        f"known: {unread}",
    )


def _terms(residual: Residual) -> str:
    named = (
        ("weights", residual.weights_mib),
        ("KV cache", residual.kv_mib),
        ("compute buffers", residual.compute_mib),
        ("CUDA and what nothing explains", residual.rest_mib),
    )
    return ", ".join(f"{name} {'unknown' if value is None else f'{value:+,.1f}'}" for name, value in named)


def _fuller(found: DeviceEvidence) -> str:
    """Say that others fill a card more than when the server was started, which pushes memory off; empty if not so."""
    before, now = found.before_mib, found.others_mib
    if before is None or now is None or now <= before + _WEIGHTS_SLACK_MIB:
        return ""
    came = ", ".join(
        f"{holder.name or 'a process'} (pid {holder.pid}, {holder.unit or 'no unit'}) {mib(holder.mib)}"
        for holder in found.others
        if (holder.mib or 0) > (holder.before_mib or 0)
    )
    return (
        f"; others hold {mib(now)} of it, {mib(before)} were in use before it was started: "
        f"{came or 'the driver does not tell who'}"
    )


def _parts(devices: list[DeviceEvidence], held: float) -> str:
    logged = residuals.logged_mib(devices)
    if logged is None:
        return "parts that the engine's log does not tell"
    return f"{logged:,.1f} of the engine's buffers + {held - logged:,.1f} of CUDA and unexplained"


def memory_faults(spec: TierSpec, held_mib: Mapping[str, float]) -> list[str]:
    """Say which cards of the tier hold less than what is planned of the engine there, or far more; by UUID, in MiB.

    What CUDA takes besides is only known once a tier has been measured on such a card, for which it has to come up: so
    the band is wide upwards, and `findings` has the narrow one. Of row and tensor split the weights alone count: the
    engine has no estimate of the rest.
    """
    estimated = spec.placement.split_mode in ("none", "layer")
    faults = []
    for uuid in dict.fromkeys(device.uuid for device in spec.devices):
        here = [device for device in spec.devices if device.uuid == uuid]
        weights = sum(device.weights_mib or 0 for device in here)
        beside = sum((device.kv_mib or 0) + (device.compute_mib or 0) for device in here) if estimated else 0
        predicted = [device.predicted_mib for device in here]
        most = sum(mib or 0 for mib in predicted) + _TOO_MUCH_MIB if estimated and None not in predicted else None
        held = held_mib[uuid]
        holds = f"{spec.name}: holds {mib(held)} on {uuid} ({here[0].gpu}), planned are "
        compare = f"of {spec.unit} with the inventory"
        if held == 0:
            faults.append(f"{spec.name}: {_holds_nothing(spec, uuid, here[0].gpu)}")
        elif held < weights - _slack(weights) + max(beside - _GOOD_MIB, 0):
            faults.append(
                f"{holds}{mib(weights)} of weights"
                + (f" and {mib(beside)} of KV cache and buffers" if beside else " alone")
                + f": compare --tensor-split, --device and --no-kv-offload {compare}"
            )
        elif most is not None and held > most:
            faults.append(
                f"{holds}{mib(most - _TOO_MUCH_MIB)} with all that CUDA takes: compare --tensor-split, --device, "
                f"--ctx-size and --ubatch-size {compare}"
            )
    return faults


def _holds_nothing(spec: TierSpec, uuid: str, gpu: str) -> str:
    return (
        f"holds nothing on {uuid} ({gpu}): it fell to the CPU or to other cards; "
        f"check --device and DeviceAllow of {spec.unit}"
    )


def _slack(planned_mib: float) -> float:
    return max(_WEIGHTS_SLACK_MIB, planned_mib * _WEIGHTS_SLACK_SHARE)
