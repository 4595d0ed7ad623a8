"""Hold the evidence of a tier against what was promised of it. Pure: nothing here measures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from checker.evidence import Check, Completion, DeviceEvidence, Evidence, Served, Verdict
from checker.tier import TierSpec

_WEIGHTS_SLACK_MIB = 1.0
_WEIGHTS_SLACK_SHARE = 0.01
# llama.cpp rounds the context of a slot up to whole blocks of this size (GGML_PAD in llama-context.cpp).
_CONTEXT_BLOCK = 256
_WALL_SHORTEST = 0.95
_WALL_LONGEST = 1.5
_WALL_SPARE_S = 1.0

# Far from what language does, and from what a small model that repeats itself does.
_UNPRINTABLE_SHARE = 0.05
_LETTERS_SHARE = 0.3
_LONG = 40
_ONE_CHARACTER_SHARE = 0.4
_MANY_WORDS = 10
_DISTINCT_WORDS = 4
_ONE_WORD_SHARE = 0.5
# Persian and the scripts of India write words with them, yet Python does not call them printable.
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class _Finding:
    check: Check
    reason: str


def judge(spec: TierSpec, evidence: Evidence) -> Verdict:
    """Return "pass" when every check passed, else "fail" with one sentence for each that did not.

    The sentences name the tier, the device by UUID, the value, and what to do about it. What could not be measured did
    not pass; `problems` of the evidence say why it could not, and come first.
    """
    findings = tuple(_findings(spec, evidence))
    failed = [finding.reason for finding in findings if not finding.check.passed]
    if evidence.unit.active_state != "active":
        # Everything else fails with it, and would only hide it.
        failed = failed[:1]
    reasons = [f"{spec.name}: {problem}" for problem in evidence.problems] + failed
    return Verdict(
        verdict="fail" if reasons else "pass",
        checks=tuple(finding.check for finding in findings),
        reasons=tuple(reasons),
    )


def _findings(spec: TierSpec, evidence: Evidence) -> Iterator[_Finding]:
    yield _unit_active(spec, evidence)
    yield _reachable(spec, evidence)
    if evidence.served is not None:
        yield from _right_model(spec, evidence.served)
    yield from _weights(spec, evidence)
    yield _nothing_elsewhere(spec, evidence)
    yield from _host_weights(spec, evidence)
    yield from _memory_held(spec, evidence)
    yield _load_time(spec, evidence)
    if evidence.completion is None:
        yield _Finding(
            Check("completion", False, "an answer", "none"),
            f"{spec.name}: gave no completion: see journalctl -u {spec.unit}",
        )
    else:
        yield _text(spec, evidence.completion)
        yield _speed(spec, evidence.completion)
        yield _clock(spec, evidence.completion)


def _unit_active(spec: TierSpec, evidence: Evidence) -> _Finding:
    state = evidence.unit.active_state
    return _Finding(
        Check("unit active", state == "active", "active", state),
        f"{spec.name}: {spec.unit} is {state}: see journalctl -u {spec.unit}, then systemctl restart {spec.unit}",
    )


def _reachable(spec: TierSpec, evidence: Evidence) -> _Finding:
    reached = evidence.served is not None
    return _Finding(
        Check("reachable", reached, f"answers at {spec.base_url}", "answers" if reached else "does not answer"),
        f"{spec.name}: {spec.base_url} does not tell what it serves: see journalctl -u {spec.unit}",
    )


def model_faults(spec: TierSpec, served: Served) -> list[str]:
    """Say what is wrong with the model, context or engine that a server tells of; empty when they are the tier's."""
    return [finding.reason for finding in _right_model(spec, served) if not finding.check.passed]


def _right_model(spec: TierSpec, served: Served) -> Iterator[_Finding]:
    restart = f"systemctl restart {spec.unit}"
    yield _Finding(
        Check("model file", served.model_path == spec.model.file, spec.model.file, served.model_path),
        f"{spec.name}: serves {served.model_path} instead of {spec.model.file}: {restart}",
    )
    yield _Finding(
        Check("model name", served.alias == spec.model.name, spec.model.name, served.alias),
        f"{spec.name}: calls its model {served.alias!r} instead of {spec.model.name!r}: {restart}",
    )
    wanted = spec.placement.ctx_size // _parallel(spec)
    yield _Finding(
        Check(
            "context",
            wanted <= served.ctx_size < wanted + _CONTEXT_BLOCK,
            f"{wanted} tokens",
            f"{served.ctx_size} tokens",
        ),
        f"{spec.name}: serves a context of {served.ctx_size} tokens, {wanted} were promised: "
        f"{restart}, or plan a context that the model was trained for",
    )
    commit = served.build.rpartition("-")[2]
    yield _Finding(
        Check("engine", bool(commit) and spec.engine.commit.startswith(commit), spec.engine.commit, served.build),
        f"{spec.name}: runs engine build {served.build!r} instead of commit {spec.engine.commit}: {restart}",
    )


def _parallel(spec: TierSpec) -> int:
    for flag, value in zip(spec.argv, spec.argv[1:], strict=False):
        if flag == "--parallel":
            return max(int(value), 1)
    return 1


def _weights(spec: TierSpec, evidence: Evidence) -> Iterator[_Finding]:
    for found in _expected_devices(spec, evidence):
        predicted, measured = found.predicted_weights_mib, found.weights_mib
        if predicted is None:
            passed = measured is not None and measured > 0
        else:
            passed = measured is not None and abs(measured - predicted) <= _slack(predicted)
        yield _Finding(
            Check(f"weights on {found.name}", passed, _planned(predicted), _mib(measured)),
            f"{spec.name}: the engine put {_mib(measured)} of weights on {found.uuid} ({found.gpu}), planned are "
            f"{_planned(predicted)}: compare --tensor-split and --device of {spec.unit} with the inventory, "
            "then run site.yml again",
        )


def _nothing_elsewhere(spec: TierSpec, evidence: Evidence) -> _Finding:
    named = {device.name for device in spec.devices}
    uuids = {device.uuid for device in spec.devices}
    strays = [found for found in evidence.devices if found.name not in named or found.uuid not in uuids]
    read = bool(strays) or not _unread(evidence)
    places = ", ".join(
        f"{found.uuid or found.name} ({found.gpu or 'no card of the plan'}, "
        f"{_mib(_most(found.process_mib, found.weights_mib, found.kv_mib, found.compute_mib))})"
        for found in strays
    )
    measured = places or ("nothing" if read else "could not be read")
    return _Finding(
        Check("nothing on other devices", read and not strays, "nothing", measured),
        f"{spec.name}: is on devices that are not its own: {places}: check --device and DeviceAllow of {spec.unit}"
        if strays
        else f"{spec.name}: which devices its process uses could not be read",
    )


def _unread(evidence: Evidence) -> bool:
    return any(found.process_mib is None for found in evidence.devices)


def _most(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _host_weights(spec: TierSpec, evidence: Evidence) -> Iterator[_Finding]:
    if spec.host_weights_mib is None:
        return
    measured = evidence.host.weights_mib
    limit = spec.host_weights_mib + _WEIGHTS_SLACK_MIB
    yield _Finding(
        Check(
            "weights in host memory",
            measured is not None and measured <= limit,
            f"at most {_mib(limit)}",
            _mib(measured),
        ),
        f"{spec.name}: {_mib(measured)} of weights are in host memory, planned are {_mib(spec.host_weights_mib)}: "
        f"layers fell to the CPU; compare --n-gpu-layers and --device of {spec.unit} with the inventory",
    )


def _memory_held(spec: TierSpec, evidence: Evidence) -> Iterator[_Finding]:
    found = _expected_devices(spec, evidence)
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
                f"holds {_mib(held)} on {uuid} ({gpu}), the engine logged {_mib(logged)} of weights and KV cache: "
                "the driver has moved memory off the card, or the log is of another run; "
                f"systemctl restart {spec.unit}"
            )
        expected = f"at least {_mib(logged)}" if logged else "more than 0"
        yield _Finding(Check(f"memory held on {uuid}", passed, expected, _mib(held)), f"{spec.name}: {reason}")


def memory_faults(spec: TierSpec, held_mib: Mapping[str, float]) -> list[str]:
    """Say which cards of the tier hold less than the weights planned for them; `held_mib` is by UUID."""
    faults = []
    for uuid in dict.fromkeys(device.uuid for device in spec.devices):
        here = [device for device in spec.devices if device.uuid == uuid]
        planned = sum(device.weights_mib or 0 for device in here)
        held = held_mib[uuid]
        if held == 0:
            faults.append(f"{spec.name}: {_holds_nothing(spec, uuid, here[0].gpu)}")
        elif held < planned - _slack(planned):
            faults.append(
                f"{spec.name}: holds {_mib(held)} on {uuid} ({here[0].gpu}), planned are {_mib(planned)} of weights "
                f"alone: compare --tensor-split and --device of {spec.unit} with the inventory"
            )
    return faults


def _holds_nothing(spec: TierSpec, uuid: str, gpu: str) -> str:
    return (
        f"holds nothing on {uuid} ({gpu}): it fell to the CPU or to other cards; "
        f"check --device and DeviceAllow of {spec.unit}"
    )


def _slack(planned_mib: float) -> float:
    return max(_WEIGHTS_SLACK_MIB, planned_mib * _WEIGHTS_SLACK_SHARE)


def _expected_devices(spec: TierSpec, evidence: Evidence) -> tuple[DeviceEvidence, ...]:
    by_place = {(found.name, found.uuid): found for found in evidence.devices}
    return tuple(
        by_place.get(
            (device.name, device.uuid),
            DeviceEvidence(device.name, device.uuid, device.gpu, device.weights_mib, None, None, None, None),
        )
        for device in spec.devices
    )


def _load_time(spec: TierSpec, evidence: Evidence) -> _Finding:
    limit, load_s = spec.criteria.max_load_s, evidence.unit.load_s
    measured = "unknown" if load_s is None else f"{load_s:.1f} s"
    return _Finding(
        Check("load time", load_s is not None and load_s <= limit, f"at most {limit:g} s", measured),
        f"{spec.name}: load time is {measured}, at most {limit:g} s are promised: "
        "a first load reads the disk, a restart the page cache; raise max_load_s or put the model on a faster disk",
    )


def _text(spec: TierSpec, completion: Completion) -> _Finding:
    fault = garbage(completion.text)
    shown = repr(completion.text[:60])
    return _Finding(
        Check("text", fault is None, "language", shown if fault is None else f"{fault}: {shown}"),
        f"{spec.name}: the completion is not language ({fault}): {shown}: "
        "the weights are damaged or a device computes wrong; try each card alone",
    )


def _speed(spec: TierSpec, completion: Completion) -> _Finding:
    minimum, measured = spec.criteria.min_generation_tokens_per_second, completion.generation_tokens_per_second
    return _Finding(
        Check("generation speed", measured >= minimum, f"at least {minimum:g} tokens/s", f"{measured:.1f} tokens/s"),
        f"{spec.name}: generates {measured:.1f} tokens/s, at least {minimum:g} are promised: "
        "give the faster card more layers, or lower min_generation_tokens_per_second",
    )


def _clock(spec: TierSpec, completion: Completion) -> _Finding:
    told_s = _seconds(completion.prompt_tokens, completion.prompt_tokens_per_second) + _seconds(
        completion.generated_tokens, completion.generation_tokens_per_second
    )
    wall_s = completion.wall_s
    low, high = told_s * _WALL_SHORTEST, told_s * _WALL_LONGEST + _WALL_SPARE_S
    return _Finding(
        Check(
            "clock",
            told_s > 0 and low <= wall_s <= high,
            f"{low:.2f} to {high:.2f} s by the server's count",
            f"{wall_s:.2f} s",
        ),
        f"{spec.name}: the server counts {told_s:.2f} s for a completion that took {wall_s:.2f} s: "
        "its speed cannot be believed; verify again while nobody else asks the tier",
    )


def _seconds(tokens: int, per_second: float) -> float:
    return tokens / per_second if per_second > 0 else 0.0


def garbage(text: str) -> str | None:
    """Say why a text cannot be language, None when it can be; what a small model says again and again is language."""
    stripped = text.strip()
    if not stripped:
        return "empty"
    unprintable = sum(
        not (char.isprintable() or char.isspace() or char in _JOINERS) or char == "\ufffd" for char in stripped
    )
    if unprintable > max(2, len(stripped) * _UNPRINTABLE_SHARE):
        return f"{unprintable} of {len(stripped)} characters are not printable"
    letters = [char for char in stripped if char.isalpha()]
    if len(letters) < len(stripped) * _LETTERS_SHARE:
        return f"only {len(letters)} of {len(stripped)} characters are letters"
    if (
        len(stripped) >= _LONG
        and (char := max(set(letters), key=letters.count))
        and (letters.count(char) > len(letters) * _ONE_CHARACTER_SHARE)
    ):
        return f"{letters.count(char)} of {len(letters)} letters are {char!r}"
    words = [word.lower() for word in re.findall(r"[^\W\d_]+", stripped)]
    # Scripts without spaces make few and long words.
    if len(words) >= _MANY_WORDS:
        word = max(set(words), key=words.count)
        if len(set(words)) < _DISTINCT_WORDS or words.count(word) > len(words) * _ONE_WORD_SHARE:
            return f"{words.count(word)} of {len(words)} words are {word!r}"
    return None


def _planned(mib: float | None) -> str:
    return "more than 0 MiB" if mib is None else _mib(mib)


def _mib(mib: float | None) -> str:
    return "an unknown number of MiB" if mib is None else f"{mib:,.1f} MiB"
